// What C++ throws; bindings/module.cpp maps each to the class of the same name in
// gplfast/errors.py.
#pragma once

#include <stdexcept>

namespace gplfast {

struct ShapeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct DTypeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct ConfigError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct ArtifactError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct UnavailableError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace gplfast
