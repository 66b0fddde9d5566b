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
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "dense_block/dense_block.h"
#include "group_norm_film/group_norm_film.h"

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
void with_floats(Address volume, const std::string& dtype, const Run& run) {
  if (dtype == "float32") return run(pointer<float>(volume));
  if (dtype == "float64") return run(pointer<double>(volume));
  if (dtype == "bfloat16") return run(pointer<BFloat16>(volume));
  require(dtype == "float16", "dtype must be float32, float64, bfloat16 or float16, got " + dtype);
  run(pointer<Float16>(volume));
}

// The same for a tensor that has the element type of T, or is float beside a shorter T.
template <typename T, typename Run>
void with_companion(Address data, bool same, const Run& run) {
  if (same) return run(pointer<T>(data));
  if constexpr (sizeof(T) < sizeof(float)) return run(pointer<float>(data));
  throw std::invalid_argument("a companion of another dtype must be float32 beside a shorter one");
}

// The value of an option by its name.
template <typename Value>
Value named(const char* option, const std::string& name, const std::map<std::string, Value>& values) {
  const auto found = values.find(name);
  require(found != values.end(), std::string(option) + " has no value " + name);
  return found->second;
}

SplatProblem splat_problem(Address peaks, Address offsets, Address widths, Address weights,
                           Address voxels, int64_t n_peaks, int64_t n_studies, int64_t n_kernels,
                           int64_t n_voxels, std::array<int64_t, 3> shape, std::array<double, 3> spacing,
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
  problem.n_peaks = n_peaks;
  problem.n_studies = n_studies;
  problem.n_kernels = n_kernels;
  problem.n_voxels = n_voxels;
  std::copy(shape.begin(), shape.end(), problem.shape);
  std::copy(spacing.begin(), spacing.end(), problem.spacing);
  std::copy(origin.begin(), origin.end(), problem.origin);
  static const std::map<std::string, Mode> modes{{"sum", Mode::sum},
                                                 {"max", Mode::max},
                                                 {"union", Mode::union_},
                                                 {"sphere", Mode::sphere}};
  static const std::map<std::string, Widths> owners{
      {"kernels", Widths::kernels}, {"studies", Widths::studies}, {"peaks", Widths::peaks}};
  static const std::map<std::string, Support> supports{
      {"ball", Support::ball}, {"box", Support::box}, {"taper", Support::taper}};
  static const std::map<std::string, Normalize> normalizations{
      {"peak", Normalize::peak}, {"sum", Normalize::sum}, {"mm3", Normalize::mm3}};
  static const std::map<std::string, Centre> centres{{"peak", Centre::peak}, {"voxel", Centre::voxel}};
  problem.mode = named("mode", mode, modes);
  problem.widths_of = named("widths_of", widths_of, owners);
  problem.support = named("support", support, supports);
  problem.normalize = named("normalize", normalize, normalizations);
  problem.centre = named("centre", centre, centres);
  problem.truncate = truncate;
  problem.count = count;
  return problem;
}

// Numbers of any dtype on the CPU, as the doubles that a kernel takes; float64 is left where it is, and may
// be a device's.
using Typed = std::pair<Address, std::string>;

class Doubles {
 public:
  Doubles(Typed numbers, int64_t n)
      : numbers_(std::move(numbers)), copies_(numbers_.first && numbers_.second != "float64"),
        copy_(copies_ ? static_cast<size_t>(n) : 0) {}

  double* data() { return copies_ ? copy_.data() : pointer<double>(numbers_.first); }

  const double* read() {
    if (copies_) {
      with_floats(numbers_.first, numbers_.second, [&](const auto* from) {
        for (size_t i = 0; i < copy_.size(); ++i) copy_[i] = static_cast<double>(to_float(from[i]));
      });
    }
    return data();
  }

  void write() const {
    if (!copies_) return;
    with_floats(numbers_.first, numbers_.second, [&](auto* to) {
      using T = std::remove_pointer_t<decltype(to)>;
      for (size_t i = 0; i < copy_.size(); ++i) store(static_cast<Compute<T>>(copy_[i]), to[i]);
    });
  }

 private:
  Typed numbers_;
  bool copies_;
  std::vector<double> copy_;
};

// A problem that holds its parameters: moved, they stay where they are.
struct HeldGroupNormFilm : GroupNormFilm {
  std::vector<Doubles> held;
};

std::unique_ptr<HeldGroupNormFilm> group_norm_film_problem(
    int64_t samples, int64_t channels, int64_t voxels, int64_t groups, bool channels_last,
    int64_t x_row, const Typed& weight, const Typed& bias, const Typed& gamma, const Typed& beta,
    bool silu, double eps) {
  auto problem = std::make_unique<HeldGroupNormFilm>();
  problem->held.reserve(4);
  const auto hold = [&](const Typed& numbers, int64_t n) {
    problem->held.emplace_back(numbers, n);
    return problem->held.back().read();
  };
  static_cast<GroupNormFilm&>(*problem) = {
      samples, channels, voxels, groups, channels_last, x_row, hold(weight, channels),
      hold(bias, channels), hold(gamma, samples * channels), hold(beta, samples * channels), silu, eps};
  return problem;
}

void bind_group_norm_film(py::module_& module) {
  py::class_<HeldGroupNormFilm>(module, "GroupNormFilm")
      .def(py::init(&group_norm_film_problem), py::kw_only(), py::arg("samples"),
           py::arg("channels"), py::arg("voxels"), py::arg("groups"), py::arg("channels_last"),
           py::arg("x_row"), py::arg("weight"), py::arg("bias"), py::arg("gamma"), py::arg("beta"),
           py::arg("silu"), py::arg("eps"));

  module.def(
      "channel_statistics_cpu",
      [](const HeldGroupNormFilm& problem, Address x, const std::string& dtype, int64_t stride,
         Address mean, Address m2, int threads) {
        with_floats(x, dtype, [&](auto* data) {
          channel_statistics_cpu(problem, data, stride, pointer<double>(mean), pointer<double>(m2), threads);
        });
      },
      py::arg("problem"), py::arg("x"), py::arg("dtype"), py::arg("stride"), py::arg("mean"),
      py::arg("m2"), py::arg("threads"), NoGil());

  module.def(
      "group_statistics",
      [](const HeldGroupNormFilm& problem, Address channel_mean, Address channel_m2, int64_t stride,
         Address mean, Address rstd) {
        group_statistics(problem, pointer<const double>(channel_mean),
                         pointer<const double>(channel_m2), stride, pointer<double>(mean),
                         pointer<double>(rstd));
      },
      py::arg("problem"), py::arg("channel_mean"), py::arg("channel_m2"), py::arg("stride"),
      py::arg("mean"), py::arg("rstd"), NoGil());

  module.def(
      "group_norm_film_cpu",
      [](const HeldGroupNormFilm& problem, Address x, const std::string& dtype, Address y,
         const Typed& mean, const Typed& rstd, int threads) {
        const int64_t n_groups = problem.samples * problem.groups;
        Doubles means(mean, n_groups), rstds(rstd, n_groups);
        with_floats(x, dtype, [&](auto* data) {
          using T = std::remove_pointer_t<decltype(data)>;
          group_norm_film_cpu<T>(problem, data, pointer<T>(y), means.data(), rstds.data(), threads);
        });
        means.write();
        rstds.write();
      },
      py::arg("problem"), py::arg("x"), py::arg("dtype"), py::arg("y"), py::arg("mean"),
      py::arg("rstd"), py::arg("threads"), NoGil());

  module.def(
      "group_norm_film_apply_cpu",
      [](const HeldGroupNormFilm& problem, Address x, const std::string& dtype, Address mean,
         Address rstd, Address y, const std::string& y_dtype, int threads) {
        with_floats(x, dtype, [&](auto* data) {
          using T = std::remove_pointer_t<decltype(data)>;
          with_companion<T>(y, dtype == y_dtype, [&](auto* out) {
            group_norm_film_apply_cpu<T>(problem, data, pointer<const double>(mean),
                                         pointer<const double>(rstd), out, threads);
          });
        });
      },
      py::arg("problem"), py::arg("x"), py::arg("dtype"), py::arg("mean"), py::arg("rstd"),
      py::arg("y"), py::arg("y_dtype"), py::arg("threads"), NoGil());

  module.def(
      "group_norm_film_backward_cpu",
      [](const HeldGroupNormFilm& problem, Address dy, const std::string& dy_dtype, Address x,
         const std::string& dtype, const Typed& mean, const Typed& rstd, Address dz, Address dx,
         bool accumulate, const Typed& weight, const Typed& bias, const Typed& gamma,
         const Typed& beta, int threads) {
        const int64_t n_groups = problem.samples * problem.groups, c = problem.channels;
        Doubles means(mean, n_groups), rstds(rstd, n_groups);
        const double *m = means.read(), *r = rstds.read();
        Doubles of[] = {{weight, c}, {bias, c}, {gamma, problem.samples * c}, {beta, problem.samples * c}};
        const GroupNormFilmGradients gradients{of[0].data(), of[1].data(), of[2].data(), of[3].data()};
        with_floats(x, dtype, [&](auto* data) {
          using T = std::remove_pointer_t<decltype(data)>;
          with_companion<T>(dy, dtype == dy_dtype, [&](auto* grad) {
            using S = std::remove_pointer_t<decltype(grad)>;
            group_norm_film_backward_cpu<T, S>(problem, grad, data, m, r, pointer<S>(dz),
                                               pointer<T>(dx), accumulate, gradients, threads);
          });
        });
        for (const Doubles& gradient : of) gradient.write();
      },
      py::arg("problem"), py::arg("dy"), py::arg("dy_dtype"), py::arg("x"), py::arg("dtype"),
      py::arg("mean"), py::arg("rstd"), py::arg("dz"), py::arg("dx"), py::arg("accumulate"),
      py::arg("weight"), py::arg("bias"), py::arg("gamma"), py::arg("beta"), py::arg("threads"), NoGil());
}

void bind_dense_block(py::module_& module) {
  module.def(
      "convolution_pays",
      [](std::array<int64_t, 3> shape, int64_t in_channels, int64_t out_channels, int64_t dilation) {
        return convolution_pays({1, {shape[0], shape[1], shape[2]}, in_channels, out_channels, dilation,
                                 in_channels, out_channels});
      },
      py::arg("shape"), py::arg("in_channels"), py::arg("out_channels"),
      py::arg("dilation"));

  module.def(
      "convolution_cpu",
      [](Address a, int64_t a_row, Address y, int64_t y_row, int64_t samples,
         std::array<int64_t, 3> shape, int64_t in_channels, int64_t out_channels, int64_t dilation,
         Address w, std::array<int64_t, 3> w_strides, int threads) {
        const ConvWeights weights{pointer<const float>(w), w_strides[0], w_strides[1], w_strides[2]};
        convolution_cpu({samples, {shape[0], shape[1], shape[2]}, in_channels, out_channels, dilation,
                         a_row, y_row},
                        pointer<const float>(a), weights, pointer<float>(y), threads);
      },
      py::arg("a"), py::arg("a_row"), py::arg("y"), py::arg("y_row"), py::arg("samples"),
      py::arg("shape"), py::arg("in_channels"), py::arg("out_channels"), py::arg("dilation"),
      py::arg("w"), py::arg("w_strides"), py::arg("threads"), NoGil());

  module.def(
      "conv_weight_gradient_cpu",
      [](Address a, int64_t a_row, Address g, int64_t g_row, const std::string& dtype,
         int64_t samples, std::array<int64_t, 3> shape, int64_t in_channels, int64_t out_channels,
         int64_t dilation, Address dw, int threads) {
        const Convolution problem{samples,      {shape[0], shape[1], shape[2]}, in_channels,
                                  out_channels, dilation, a_row, g_row};
        with_floats(a, dtype, [&](auto* data) {
          using T = std::remove_pointer_t<decltype(data)>;
          if constexpr (std::is_same_v<T, double>) {
            throw std::invalid_argument("conv_weight_gradient: float64 is not supported");
          } else {
            conv_weight_gradient_cpu<T>(problem, data, pointer<T>(g), pointer<float>(dw), threads);
          }
        });
      },
      py::arg("a"), py::arg("a_row"), py::arg("g"), py::arg("g_row"), py::arg("dtype"),
      py::arg("samples"), py::arg("shape"), py::arg("in_channels"), py::arg("out_channels"),
      py::arg("dilation"), py::arg("dw"), py::arg("threads"), NoGil());

  module.def(
      "copy_channels_cpu",
      [](int64_t voxels, int64_t channels, Address from, const std::string& dtype, int64_t from_row,
         Address to, const std::string& to_dtype, int64_t to_row, int threads) {
        with_floats(from, dtype, [&](auto* source) {
          using T = std::remove_pointer_t<decltype(source)>;
          with_floats(to, to_dtype, [&](auto* target) {
            using U = std::remove_pointer_t<decltype(target)>;
            constexpr bool widens = std::is_same_v<U, float> && sizeof(T) < sizeof(U);
            constexpr bool narrows = std::is_same_v<T, float> && sizeof(U) < sizeof(T);
            if constexpr (std::is_same_v<T, U> || widens || narrows) {
              copy_channels_cpu<T, U>(voxels, channels, source, from_row, target, to_row, threads);
            } else {
              throw std::invalid_argument("copy_channels: no copy from " + dtype + " to " + to_dtype);
            }
          });
        });
      },
      py::arg("voxels"), py::arg("channels"), py::arg("source"), py::arg("dtype"),
      py::arg("source_row"), py::arg("target"), py::arg("target_dtype"), py::arg("target_row"),
      py::arg("threads"), NoGil());
}

#ifdef ATLAS_WITH_CUDA
void bind_splat_cuda(py::module_& module) {
  module.def("splat_room", &splat_room, py::arg("problem"));

  module.def(
      "splat_cuda",
      [](const SplatProblem& problem, Address out, const std::string& dtype, Address room,
         Address stream) {
        const auto run = [&](auto* volume) {
          splat_cuda(problem, volume, pointer<void>(room), pointer<void>(stream));
        };
        dtype == "uint8" ? run(pointer<uint8_t>(out)) : with_floats(out, dtype, run);
      },
      py::arg("problem"), py::arg("out"), py::arg("dtype"), py::arg("room"), py::arg("stream"), NoGil());

  module.def(
      "splat_backward_cuda",
      [](const SplatProblem& problem, Address grad_out, const std::string& dtype, Address grad_peaks,
         Address grad_weights, Address grad_widths, Address room, Address stream) {
        with_floats(grad_out, dtype, [&](auto* volume) {
          using T = std::remove_pointer_t<decltype(volume)>;
          splat_backward_cuda<T>(problem, volume, pointer<double>(grad_peaks),
                                 pointer<double>(grad_weights), pointer<double>(grad_widths),
                                 pointer<void>(room), pointer<void>(stream));
        });
      },
      py::arg("problem"), py::arg("grad_out"), py::arg("dtype"), py::arg("grad_peaks"),
      py::arg("grad_weights"), py::arg("grad_widths"), py::arg("room"), py::arg("stream"), NoGil());
}

// Addresses are the device's; `stream` is a cudaStream_t of the current device.
void bind_group_norm_film_cuda(py::module_& module) {
  module.def(
      "group_norm_film_room",
      [](const HeldGroupNormFilm& problem) { return group_norm_film_room(problem); },
      py::arg("problem"));

  module.def(
      "group_norm_film_cuda",
      [](const HeldGroupNormFilm& problem, Address x, const std::string& dtype, Address y, Address mean,
         Address rstd, Address room, Address stream) {
        with_floats(x, dtype, [&](auto* data) {
          using T = std::remove_pointer_t<decltype(data)>;
          group_norm_film_cuda<T>(problem, data, pointer<T>(y), pointer<double>(mean),
                                  pointer<double>(rstd), pointer<void>(room), pointer<void>(stream));
        });
      },
      py::arg("problem"), py::arg("x"), py::arg("dtype"), py::arg("y"), py::arg("mean"),
      py::arg("rstd"), py::arg("room"), py::arg("stream"), NoGil());

  module.def(
      "group_norm_film_backward_cuda",
      [](const HeldGroupNormFilm& problem, Address dy, Address x, const std::string& dtype, Address mean,
         Address rstd, Address dx, bool accumulate, Address weight, Address bias, Address gamma,
         Address beta, Address room, Address stream) {
        const GroupNormFilmGradients gradients{pointer<double>(weight), pointer<double>(bias),
                                               pointer<double>(gamma), pointer<double>(beta)};
        with_floats(x, dtype, [&](auto* data) {
          using T = std::remove_pointer_t<decltype(data)>;
          group_norm_film_backward_cuda<T>(problem, pointer<const T>(dy), data,
                                           pointer<const double>(mean), pointer<const double>(rstd),
                                           pointer<T>(dx), accumulate, gradients,
                                           pointer<void>(room), pointer<void>(stream));
        });
      },
      py::arg("problem"), py::arg("dy"), py::arg("x"), py::arg("dtype"), py::arg("mean"),
      py::arg("rstd"), py::arg("dx"), py::arg("accumulate"), py::arg("weight"), py::arg("bias"),
      py::arg("gamma"), py::arg("beta"), py::arg("room"), py::arg("stream"), NoGil());
}
#endif


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
           py::arg("widths"), py::arg("weights"), py::arg("voxels"), py::arg("n_peaks"),
           py::arg("n_studies"),
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

  bind_group_norm_film(module);
  bind_dense_block(module);

#ifdef ATLAS_WITH_CUDA
  bind_splat_cuda(module);
  bind_group_norm_film_cuda(module);
#endif

  bind_ma_maps(module);
}
