// What the CUDA runtime says about this machine; plain data, no CUDA headers.
#pragma once

#include <string>
#include <vector>

namespace gplfast::cuda {

struct DeviceReport {
    int runtime_version = 0;  // 1000 * major + 10 * minor
    int driver_version = 0;   // 0: no driver
    std::vector<std::string> devices;
    std::string error;  // why there are no devices; empty when there are
};

DeviceReport report_devices();

}  // namespace gplfast::cuda
