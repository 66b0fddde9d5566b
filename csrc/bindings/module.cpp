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
#include <utility>
#include <vector>

#include "common/checks.h"
#include "ma_maps/ma_maps.h"
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

// ---- ma_maps ----------------------------------------------------------------------------------

FociProblem foci_problem(Address bits, Address first, std::array<int64_t, 3> shape, Address boxes,
                         Address patterns, Address values, int64_t stride, Address ijk,
                         Address offsets, Address kinds, int64_t n_studies) {
  return {{{shape[0], shape[1], shape[2]}, pointer<const uint64_t>(bits), pointer<const int64_t>(first)},
          {pointer<const SupportBox>(boxes), pointer<const uint64_t>(patterns),
           pointer<const void>(values), stride},
          pointer<const int32_t>(ijk),
          pointer<const int64_t>(offsets),
          pointer<const int64_t>(kinds),
          n_studies};
}

MaKind ma_kind(const std::string& kind) {
  require(kind == "cover" || kind == "count" || kind == "max",
          "kind must be cover, count or max, got " + kind);
  return kind == "cover" ? MaKind::cover : kind == "count" ? MaKind::count : MaKind::max;
}

void bind_ma_maps(py::module_& module) {
  py::class_<FociProblem>(module, "FociProblem")
      .def(py::init(&foci_problem), py::kw_only(), py::arg("bits"), py::arg("first"),
           py::arg("shape"), py::arg("boxes"), py::arg("patterns"), py::arg("values"),
           py::arg("stride"), py::arg("ijk"), py::arg("offsets"), py::arg("kinds"),
           py::arg("n_studies"));
  module.def(
      "count_mask",
      [](Address bits, int64_t n_words, Address first) {
        return count_mask(pointer<const uint64_t>(bits), n_words, pointer<int64_t>(first));
      },
      py::arg("bits"), py::arg("n_words"), py::arg("first"), NoGil());
  module.def(
      "ma_sizes",
      [](const FociProblem& problem, Address sizes, int threads) {
        ma_sizes(problem, pointer<int64_t>(sizes), threads);
      },
      py::arg("problem"), py::arg("sizes"), py::arg("threads"), NoGil());
  module.def(
      "ma_fill",
      [](const FociProblem& problem, const std::string& kind, float value, Address starts,
         Address indices, Address data, int threads) {
        ma_fill(problem, ma_kind(kind), value, pointer<const int64_t>(starts),
                pointer<int32_t>(indices), pointer<float>(data), threads);
      },
      py::arg("problem"), py::arg("kind"), py::arg("value"), py::arg("starts"),
      py::arg("indices"), py::arg("data"), py::arg("threads"), NoGil());
  module.def(
      "coverage_statistic",
      [](const FociProblem& problem, Address weights, bool count, Address out) {
        coverage_statistic(problem, pointer<const double>(weights), count, pointer<float>(out));
      },
      py::arg("problem"), py::arg("weights"), py::arg("count"), py::arg("out"), NoGil());
  module.def(
      "ale_statistic",
      [](const FociProblem& problem, Address out) { ale_statistic(problem, pointer<float>(out)); },
      py::arg("problem"), py::arg("out"), NoGil());
  module.def(
      "cluster_maxima",
      [](Address bits, Address first, std::array<int64_t, 3> shape, Address statistic,
         double threshold) {
        const MaskRows mask{{shape[0], shape[1], shape[2]}, pointer<const uint64_t>(bits),
                            pointer<const int64_t>(first)};
        const ClusterMaxima maxima =
            cluster_maxima(mask, pointer<const float>(statistic), threshold);
        return std::pair<int64_t, double>(maxima.size, maxima.mass);
      },
      py::arg("bits"), py::arg("first"), py::arg("shape"), py::arg("statistic"),
      py::arg("threshold"), NoGil());
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

  bind_ma_maps(module);
}
