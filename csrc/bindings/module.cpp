// atlas_kernels._kernels: every C++ kernel as a Python function over addresses.
//
// The only file that knows Python, and it knows neither torch nor NumPy: callers pass data_ptr() or
// array.ctypes.data and have checked shapes, dtypes and devices. Each function releases the GIL.
// Types for these functions: atlas_kernels/_kernels.pyi.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "common/checks.h"
#include "splat/splat.h"

namespace py = pybind11;
using namespace atlas_kernels;

namespace {

using Address = std::uintptr_t;
using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Calls run(T*) with the volume's element type.
template <typename Run>
void with_volume(Address volume, const std::string& dtype, const Run& run) {
  require(dtype == "float32" || dtype == "float64", "dtype must be float32 or float64, got " + dtype);
  if (dtype == "float32") {
    run(pointer<float>(volume));
  } else {
    run(pointer<double>(volume));
  }
}

SplatProblem splat_problem(Address peaks, Address offsets, Address fwhm, Address weights,
                           int64_t n_studies, int64_t n_widths, std::array<int64_t, 3> shape,
                           std::array<double, 3> spacing, std::array<double, 3> origin,
                           const std::string& mode, const std::string& support, double truncate) {
  require(mode == "sum" || mode == "max", "mode must be sum or max, got " + mode);
  require(support == "ball" || support == "box", "support must be ball or box, got " + support);
  return {pointer<const double>(peaks),
          pointer<const int64_t>(offsets),
          pointer<const double>(fwhm),
          pointer<const double>(weights),
          n_studies,
          n_widths,
          {shape[0], shape[1], shape[2]},
          {spacing[0], spacing[1], spacing[2]},
          {origin[0], origin[1], origin[2]},
          mode == "sum" ? SplatMode::sum : SplatMode::max,
          support == "ball" ? SplatSupport::ball : SplatSupport::box,
          truncate};
}

}  // namespace

PYBIND11_MODULE(_kernels, module) {
  module.doc() = "C++ kernels over addresses; use the public functions of atlas_kernels instead.";
#ifdef ATLAS_WITH_CUDA
  module.attr("built_for") = py::make_tuple("cpu", "cuda");
#else
  module.attr("built_for") = py::make_tuple("cpu");
#endif

  py::class_<SplatProblem>(module, "SplatProblem")
      .def(py::init(&splat_problem), py::kw_only(), py::arg("peaks"), py::arg("offsets"),
           py::arg("fwhm"), py::arg("weights"), py::arg("n_studies"), py::arg("n_widths"),
           py::arg("shape"), py::arg("spacing"), py::arg("origin"), py::arg("mode"),
           py::arg("support"), py::arg("truncate"));

  module.def(
      "splat_cpu",
      [](const SplatProblem& problem, Address out, const std::string& dtype, int threads) {
        with_volume(out, dtype, [&](auto* volume) { splat_cpu(problem, volume, threads); });
      },
      py::arg("problem"), py::arg("out"), py::arg("dtype"), py::arg("threads"), NoGil());

  module.def(
      "splat_backward_cpu",
      [](const SplatProblem& problem, Address grad_out, const std::string& dtype, Address grad_peaks,
         Address grad_weights, Address grad_fwhm, int threads) {
        with_volume(grad_out, dtype, [&](auto* volume) {
          splat_backward_cpu(problem, volume, pointer<double>(grad_peaks),
                             pointer<double>(grad_weights), pointer<double>(grad_fwhm), threads);
        });
      },
      py::arg("problem"), py::arg("grad_out"), py::arg("dtype"), py::arg("grad_peaks"),
      py::arg("grad_weights"), py::arg("grad_fwhm"), py::arg("threads"), NoGil());
}
