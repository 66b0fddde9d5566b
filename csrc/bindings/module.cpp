// atlas_kernels._kernels: every C++ kernel as a Python function over addresses.
//
// The only file that knows Python, and it knows neither torch nor NumPy: callers pass data_ptr() or
// array.ctypes.data and have checked shapes, dtypes and devices. Each function releases the GIL.
// Types for these functions: atlas_kernels/_kernels.pyi.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
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
void with_floats(Address volume, const std::string& dtype, const Run& run) {
  if (dtype == "float32") return run(pointer<float>(volume));
  if (dtype == "float64") return run(pointer<double>(volume));
  if (dtype == "bfloat16") return run(pointer<BFloat16>(volume));
  require(dtype == "float16", "dtype must be float32, float64, bfloat16 or float16, got " + dtype);
  run(pointer<Float16>(volume));
}

// The value of an option by its name.
template <typename Value>
Value named(const char* option, const std::string& name, const std::map<std::string, Value>& values) {
  const auto found = values.find(name);
  require(found != values.end(), std::string(option) + " has no value " + name);
  return found->second;
}

SplatProblem splat_problem(Address peaks, Address offsets, Address widths, Address weights,
                           Address voxels, int64_t n_studies, int64_t n_kernels, int64_t n_voxels,
                           std::array<int64_t, 3> shape, std::array<double, 3> spacing,
                           std::array<double, 3> origin, const std::string& mode,
                           const std::string& widths_of, const std::string& support,
                           const std::string& normalize, const std::string& centre, double truncate,
                           bool count) {
  using Mode = SplatMode;
  using Widths = SplatWidths;
  using Support = SplatSupport;
  using Normalize = SplatNormalize;
  using Centre = SplatCentre;
  SplatProblem problem;
  problem.peaks = pointer<const double>(peaks);
  problem.offsets = pointer<const int64_t>(offsets);
  problem.widths = pointer<const double>(widths);
  problem.weights = pointer<const double>(weights);
  problem.voxels = pointer<const int64_t>(voxels);
  problem.n_studies = n_studies;
  problem.n_kernels = n_kernels;
  problem.n_voxels = n_voxels;
  std::copy(shape.begin(), shape.end(), problem.shape);
  std::copy(spacing.begin(), spacing.end(), problem.spacing);
  std::copy(origin.begin(), origin.end(), problem.origin);
  problem.mode = named<Mode>("mode", mode, {{"sum", Mode::sum},
                                            {"max", Mode::max},
                                            {"union", Mode::union_},
                                            {"sphere", Mode::sphere}});
  problem.widths_of = named<Widths>("widths_of", widths_of, {{"kernels", Widths::kernels},
                                                             {"studies", Widths::studies},
                                                             {"peaks", Widths::peaks}});
  problem.support = named<Support>("support", support, {{"ball", Support::ball},
                                                        {"box", Support::box},
                                                        {"taper", Support::taper}});
  problem.normalize = named<Normalize>("normalize", normalize, {{"peak", Normalize::peak},
                                                                {"sum", Normalize::sum},
                                                                {"mm3", Normalize::mm3}});
  problem.centre =
      named<Centre>("centre", centre, {{"peak", Centre::peak}, {"voxel", Centre::voxel}});
  problem.truncate = truncate;
  problem.count = count;
  return problem;
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
           py::arg("widths"), py::arg("weights"), py::arg("voxels"), py::arg("n_studies"),
           py::arg("n_kernels"), py::arg("n_voxels"), py::arg("shape"), py::arg("spacing"),
           py::arg("origin"), py::arg("mode"), py::arg("widths_of"), py::arg("support"),
           py::arg("normalize"), py::arg("centre"), py::arg("truncate"), py::arg("count"));

  module.def(
      "splat_cpu",
      [](const SplatProblem& problem, Address out, const std::string& dtype, int threads) {
        const auto run = [&](auto* volume) { splat_cpu(problem, volume, threads); };
        dtype == "uint8" ? run(pointer<uint8_t>(out)) : with_floats(out, dtype, run);
      },
      py::arg("problem"), py::arg("out"), py::arg("dtype"), py::arg("threads"), NoGil());

  module.def(
      "splat_backward_cpu",
      [](const SplatProblem& problem, Address grad_out, const std::string& dtype, Address grad_peaks,
         Address grad_weights, Address grad_widths, int threads) {
        with_floats(grad_out, dtype, [&](auto* volume) {
          splat_backward_cpu(problem, volume, pointer<double>(grad_peaks),
                             pointer<double>(grad_weights), pointer<double>(grad_widths), threads);
        });
      },
      py::arg("problem"), py::arg("grad_out"), py::arg("dtype"), py::arg("grad_peaks"),
      py::arg("grad_weights"), py::arg("grad_widths"), py::arg("threads"), NoGil());
}
