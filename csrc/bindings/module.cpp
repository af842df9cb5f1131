// gplfast._core. Only gplfast/ops/ imports it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/register.h"
#include "common/errors.h"
#include "common/pages.h"
#include "common/parallel.h"
#include "cpu/isa.h"
#include "ops/scan.h"

namespace py = pybind11;

namespace {

void raise(const char* type, const std::exception& error) {
    py::set_error(py::module_::import("gplfast.errors").attr(type), error.what());
}

void translate(std::exception_ptr thrown) {
    try {
        if (thrown) std::rethrow_exception(thrown);
    } catch (const gplfast::ShapeError& error) {
        raise("ShapeError", error);
    } catch (const gplfast::DTypeError& error) {
        raise("DTypeError", error);
    } catch (const gplfast::ConfigError& error) {
        raise("ConfigError", error);
    } catch (const gplfast::UnavailableError& error) {
        raise("UnavailableError", error);
    } catch (const gplfast::ArtifactError& error) {
        raise("ArtifactError", error);
    }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
    namespace cpu = gplfast::cpu;
    m.doc() = "The compiled part of gplfast; use gplfast.ops";
    py::register_exception_translator(translate);
    gplfast::bindings::register_ops(m);
    gplfast::bindings::register_index(m);
    m.def("current_isa", [] { return cpu::isa_name(cpu::current_isa()); });
    m.def("available_isas", [] {
        std::vector<std::string> names;
        for (const cpu::Isa isa : cpu::available_isas()) names.emplace_back(cpu::isa_name(isa));
        return names;
    });
    m.def("force_isa", &cpu::force_isa, py::arg("name"));
    m.def("available_threads", &gplfast::available_threads);
    m.def(
        "set_max_resident_bytes_for_testing",
        [](size_t n_bytes) { gplfast::max_resident_bytes = n_bytes; }, py::arg("n_bytes"));
    m.def("set_bound_scale_for_testing", &gplfast::ops::set_bound_scale_for_testing,
          py::arg("scale"));
}
