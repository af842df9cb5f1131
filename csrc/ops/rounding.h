// Directed rounding of doubles to float32.
#pragma once

#include <cmath>
#include <limits>

namespace gplfast::ops {

inline float rounded_up(double x) {
    const float nearest = static_cast<float>(x);
    return nearest < x ? std::nextafter(nearest, std::numeric_limits<float>::infinity()) : nearest;
}

inline float rounded_down(double x) {
    return -rounded_up(-x);
}

}  // namespace gplfast::ops
