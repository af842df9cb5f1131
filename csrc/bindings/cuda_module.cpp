// gplfast._cuda: the optional GPU module. For now it only says what is there.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/device.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "gplfast on the GPU; use gplfast.ops";
    m.def("info", [] {
        const auto report = gplfast::cuda::report_devices();
        py::dict info;
        info["runtime"] = report.runtime_version;
        info["driver"] = report.driver_version;
        info["devices"] = report.devices;
        info["error"] = report.error;
        return info;
    });
}
