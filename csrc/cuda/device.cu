#include <cuda_runtime.h>

#include "cuda/device.h"

namespace gplfast::cuda {

DeviceReport report_devices() {
    DeviceReport report;
    if (cudaRuntimeGetVersion(&report.runtime_version) != cudaSuccess) report.runtime_version = 0;
    if (cudaDriverGetVersion(&report.driver_version) != cudaSuccess) report.driver_version = 0;
    int n_devices = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&n_devices); status != cudaSuccess) {
        report.error = cudaGetErrorString(status);
        return report;
    }
    for (int device = 0; device < n_devices; ++device) {
        cudaDeviceProp properties;
        if (const cudaError_t status = cudaGetDeviceProperties(&properties, device);
            status != cudaSuccess) {
            report.error = cudaGetErrorString(status);
            return report;
        }
        report.devices.emplace_back(properties.name);
    }
    return report;
}

}  // namespace gplfast::cuda
