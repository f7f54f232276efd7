#include "ops/cpu/onednn_product.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "base/check.h"
#include "fmt/format.h"
#include "memory/buffer.h"
#include "ops/cpu/row_kernels.h"
#include "ops/element.h"

namespace zp::ops::cpu {
namespace {

using dnnl::memory;

// Wide enough for oneDNN to block well; a range of panels still splits among threads.
constexpr int64_t kPanelColumns = 512;
// With AMX a panel is read once for every kRowUnit rows, so it must stay in L2 (1 MiB at 4,096).
constexpr int64_t kAmxPanelColumns = 128;
// A widened panel is written and read at once: it must stay in L2, too (1 MiB at 2,048).
constexpr int64_t kWidenedPanelColumns = 128;

struct PrimitiveKey {
  int64_t rows;
  int64_t columns;
  int64_t in_dim;

  template <typename Hash>
  friend Hash AbslHashValue(Hash hash, const PrimitiveKey& key) {
    return Hash::combine(std::move(hash), key.rows, key.columns, key.in_dim);
  }
  bool operator==(const PrimitiveKey&) const = default;
};

struct Primitive {
  dnnl::matmul matmul;
  memory x;
  memory weight;
  memory y;
};

memory::desc RowMajor(int64_t rows, int64_t cols, memory::data_type type) {
  return {{rows, cols}, type, memory::format_tag::ab};
}

dnnl::matmul::primitive_desc Describe(const memory::desc& x,
                                      const memory::desc& weight,
                                      const dnnl::engine& engine) {
  const memory::desc y = RowMajor(x.dims()[0], weight.dims()[1], memory::data_type::f32);
  return {dnnl::matmul::desc(x, weight, y), engine};
}

bool UsesAmx(spec::DType product_dtype) {
  return product_dtype == spec::DType::kBf16 &&
         dnnl::get_effective_cpu_isa() == dnnl::cpu_isa::avx512_core_amx;
}

int64_t PanelColumnsFor(spec::DType dtype, spec::DType product_dtype) {
  if (dtype != product_dtype) {
    return kWidenedPanelColumns;
  }
  return UsesAmx(product_dtype) ? kAmxPanelColumns : kPanelColumns;
}

void StoreRow(spec::DType dtype, std::byte* target, int64_t col, float value) {
  StoreElement({.data = target, .dtype = dtype}, 0, col, value);
}

// Writes rows [begin, begin + count) of `weight` as rows of `target`, a [columns, in_dim] matrix in
// the product's dtype.
void CopyRows(
    const ConstMatrix& weight, int64_t begin, int64_t count, spec::DType dtype, std::byte* target) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t col = 0; col < weight.cols; ++col) {
      StoreRow(dtype, target, i * weight.cols + col, LoadElement(weight, begin + i, col));
    }
  }
}

// `sums` holds the rows [begin, end) of the product.
void FinishRows(const float* sums,
                int64_t begin,
                int64_t end,
                int64_t sums_columns,
                int64_t columns,
                int64_t first_column,
                bool gated,
                const ProductOutput& output) {
  const auto element_bytes = static_cast<int64_t>(spec::SizeOf(output.dtype));
  for (int64_t row = begin; row < end; ++row) {
    const int64_t out_row = output.ids != nullptr ? output.ids[row] : row;
    const float* from = sums + (row - begin) * sums_columns;
    std::byte* y = output.data + (out_row * output.row_stride + first_column) * element_bytes;
    if (gated) {
      SiluMultiplyRow(from, from + sums_columns / 2, columns, output.dtype, y);
    } else if (output.add) {
      const float weight = output.weights != nullptr ? output.weights[row] : 1.0f;
      AddScaledRow(from, weight, columns, reinterpret_cast<float*>(y));
    } else {
      ConvertRow(from, columns, output.dtype, y);
    }
  }
}

}  // namespace

struct OneDnnProduct::Worker {
  explicit Worker(const dnnl::engine& engine) : stream(engine) {}

  dnnl::stream stream;
  // Buffers begin at a page: vectors that straddle cache lines halve the speed of AMX.
  zp::memory::Buffer rows;   // [rows, in_dim], gathered
  zp::memory::Buffer panel;  // widened
  zp::memory::Buffer sums;   // f32 [kRowBlock, panel_columns()]
  absl::flat_hash_map<PrimitiveKey, Primitive> primitives;
};

OneDnnProduct::OneDnnProduct(spec::DType dtype, spec::DType product_dtype, int worker_count)
    : dtype_(dtype),
      product_dtype_(product_dtype),
      onednn_type_(product_dtype == spec::DType::kF32 ? memory::data_type::f32
                                                      : memory::data_type::bf16),
      // Found to be needed with AMX alone: docs/decisions/0012.
      fixed_rows_(UsesAmx(product_dtype)),
      panel_columns_(PanelColumnsFor(dtype, product_dtype)),
      engine_(dnnl::engine::kind::cpu, 0) {
  ZP_CHECK(product_dtype == spec::DType::kF32 || product_dtype == FastestFor(dtype))
      << NameOf(product_dtype) << " products of " << NameOf(dtype);
  for (int worker = 0; worker < worker_count; ++worker) {
    workers_.push_back(std::make_unique<Worker>(engine_));
    workers_.back()->sums.EnsureBytes(kRowBlock * panel_columns_ * sizeof(float), "matrix product");
  }
}

OneDnnProduct::~OneDnnProduct() = default;

// oneDNN's view of the CPU, not ours: ONEDNN_MAX_CPU_ISA then holds for this choice as well.
spec::DType OneDnnProduct::FastestFor(spec::DType dtype) {
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  const bool has_bf16 =
      isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
  return has_bf16 ? dtype : spec::DType::kF32;
}

std::string OneDnnProduct::name() const {
  constexpr int64_t kTypicalInDim = 2048;
  const auto description = Describe(RowMajor(kRowBlock, kTypicalInDim, onednn_type_),
                                    PanelDesc(panel_columns_, kTypicalInDim),
                                    engine_);
  return std::string("oneDNN ") + description.impl_info_str();
}

// oneDNN picks its blocked layout by version, instruction set and shape; shapes are the caller's.
std::string OneDnnProduct::layout_name() const {
  const dnnl_version_t* version = dnnl_version();
  const std::string numbers =
      dtype_ == product_dtype_
          ? std::string(spec::NameOf(dtype_))
          : fmt::format("{} in the order of {}", spec::NameOf(dtype_), NameOf(product_dtype_));
  return fmt::format(
      "{} by {} {}.{}.{}", numbers, name(), version->major, version->minor, version->patch);
}

int64_t OneDnnProduct::panel_count(int64_t out_dim, bool gated) const {
  const int64_t outputs = PanelOutputs(gated);
  return (out_dim + outputs - 1) / outputs;
}

int64_t OneDnnProduct::PanelOutputs(bool gated) const {
  return gated ? panel_columns_ / 2 : panel_columns_;
}

int64_t OneDnnProduct::ColumnsOf(int64_t panel, int64_t out_dim, bool gated) const {
  const int64_t outputs = std::min(PanelOutputs(gated), out_dim - panel * PanelOutputs(gated));
  return gated ? 2 * outputs : outputs;
}

memory::desc OneDnnProduct::PanelDesc(int64_t columns, int64_t in_dim) const {
  const std::lock_guard lock(mutex_);
  const auto [entry, is_new] = panel_descs_.try_emplace({columns, in_dim});
  if (is_new) {
    omp_set_num_threads(1);
    const memory::desc any({in_dim, columns}, onednn_type_, memory::format_tag::any);
    entry->second =
        Describe(RowMajor(kRowBlock, in_dim, onednn_type_), any, engine_).weights_desc();
  }
  return entry->second;
}

size_t OneDnnProduct::packed_bytes(int64_t out_dim, int64_t in_dim, bool gated) const {
  size_t numbers = 0;
  const int64_t count = panel_count(out_dim, gated);
  if (count > 0) {
    numbers =
        PanelBegin(count - 1, in_dim) + PanelNumbers(ColumnsOf(count - 1, out_dim, gated), in_dim);
  }
  return numbers * spec::SizeOf(dtype_);
}

size_t OneDnnProduct::PanelNumbers(int64_t columns, int64_t in_dim) const {
  return PanelDesc(columns, in_dim).get_size() / spec::SizeOf(product_dtype_);
}

size_t OneDnnProduct::PanelBegin(int64_t panel, int64_t in_dim) const {
  return panel == 0 ? 0 : panel * PanelNumbers(panel_columns_, in_dim);
}

void OneDnnProduct::Pack(const ConstMatrix& weight,
                         const ConstMatrix* up,
                         std::span<std::byte> packed) const {
  const bool gated = up != nullptr;
  ZP_CHECK(packed.size() == packed_bytes(weight.rows, weight.cols, gated)) << packed.size();
  omp_set_num_threads(1);
  dnnl::stream stream(engine_);
  const int64_t row_bytes = weight.cols * static_cast<int64_t>(spec::SizeOf(product_dtype_));
  const int64_t outputs = PanelOutputs(gated);
  std::vector<float> wide;  // a panel as the product reads it, if packed numbers are smaller
  std::byte* panel = packed.data();
  for (int64_t p = 0; p < panel_count(weight.rows, gated); ++p) {
    const int64_t begin = p * outputs;
    const int64_t count = std::min(outputs, weight.rows - begin);
    const int64_t columns = ColumnsOf(p, weight.rows, gated);
    std::vector<std::byte> plain(static_cast<size_t>(columns * row_bytes));
    CopyRows(weight, begin, count, product_dtype_, plain.data());
    if (gated) {
      CopyRows(*up, begin, count, product_dtype_, plain.data() + count * row_bytes);
    }
    const memory::desc packed_desc = PanelDesc(columns, weight.cols);
    const memory::desc plain_desc(
        {weight.cols, columns}, onednn_type_, memory::format_tag::ba);  // [columns, in_dim]
    memory from(plain_desc, engine_, plain.data());
    const size_t numbers = PanelNumbers(columns, weight.cols);
    void* target = panel;
    if (dtype_ != product_dtype_) {
      wide.assign(numbers, 0.0f);
      target = wide.data();
    }
    memory to(packed_desc, engine_, target);
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
    if (dtype_ != product_dtype_) {
      ConvertRow(wide.data(), static_cast<int64_t>(numbers), dtype_, panel);
    }
    panel += numbers * spec::SizeOf(dtype_);
  }
}

int64_t OneDnnProduct::CallCount(int64_t rows) const {
  return fixed_rows_ ? (rows + kRowUnit - 1) / kRowUnit : RowBlockCount(rows);
}

RowRange OneDnnProduct::CallRows(int64_t rows, int64_t call) const {
  return fixed_rows_ ? RowRange{call * kRowUnit, (call + 1) * kRowUnit} : RowRun(rows, call, 1);
}

int64_t OneDnnProduct::Gather(Worker& worker, const ProductInput& input, int64_t in_dim) const {
  const bool in_place =
      input.ids == nullptr && input.row_stride == in_dim && dtype_ == product_dtype_;
  const int64_t unit = fixed_rows_ ? kRowUnit : 1;
  const int64_t in_place_rows = in_place ? input.rows / unit * unit : 0;
  const auto element_bytes = static_cast<int64_t>(spec::SizeOf(product_dtype_));
  const auto x_element_bytes = static_cast<int64_t>(spec::SizeOf(dtype_));
  const int64_t room_rows = RowBlockCount(input.rows) * kRowBlock;
  worker.rows.EnsureBytes(room_rows * in_dim * element_bytes, "matrix product");
  for (int64_t row = in_place_rows; row < input.rows; ++row) {
    const int64_t from = input.ids != nullptr ? input.ids[row] : row;
    std::byte* to = worker.rows.data() + row * in_dim * element_bytes;
    const std::byte* x = input.data + from * input.row_stride * x_element_bytes;
    if (dtype_ == product_dtype_) {
      std::memcpy(to, x, in_dim * element_bytes);
    } else {
      WidenRow(x, dtype_, in_dim, reinterpret_cast<float*>(to));
    }
  }
  return in_place_rows;
}

const std::byte* OneDnnProduct::PanelOf(Worker& worker,
                                        const ProductWeight& weight,
                                        int64_t panel) const {
  const size_t begin = PanelBegin(panel, weight.in_dim);
  if (weight.fp8_plan == nullptr && dtype_ == product_dtype_) {
    return weight.data + begin * spec::SizeOf(dtype_);
  }
  const size_t numbers =
      PanelNumbers(ColumnsOf(panel, weight.out_dim, weight.gated), weight.in_dim);
  worker.panel.EnsureBytes(numbers * spec::SizeOf(product_dtype_), "matrix product");
  if (weight.fp8_plan != nullptr) {
    WidenFp8Panel(*weight.fp8_plan,
                  panel,
                  weight.data,
                  weight.fp8_scales,
                  {.rounded = dtype_, .stored = product_dtype_},
                  worker.panel.data());
  } else {
    WidenRow(weight.data + begin * spec::SizeOf(dtype_),
             dtype_,
             static_cast<int64_t>(numbers),
             worker.panel.as<float>());
  }
  return worker.panel.data();
}

void OneDnnProduct::Multiply(Worker& worker,
                             const std::byte* x,
                             int64_t rows,
                             const std::byte* panel,
                             int64_t columns,
                             int64_t in_dim) const {
  const auto [entry, is_new] = worker.primitives.try_emplace(PrimitiveKey{rows, columns, in_dim});
  Primitive& primitive = entry->second;
  if (is_new) {
    const auto description =
        Describe(RowMajor(rows, in_dim, onednn_type_), PanelDesc(columns, in_dim), engine_);
    primitive.matmul = dnnl::matmul(description);
    primitive.x = memory(description.src_desc(), engine_, nullptr);
    primitive.weight = memory(description.weights_desc(), engine_, nullptr);
    primitive.y = memory(description.dst_desc(), engine_, worker.sums.as<float>());
  }
  // oneDNN takes no pointer to const, but only reads its sources.
  primitive.x.set_data_handle(const_cast<std::byte*>(x));
  primitive.weight.set_data_handle(const_cast<std::byte*>(panel));
  primitive.matmul.execute(worker.stream,
                           {{DNNL_ARG_SRC, primitive.x},
                            {DNNL_ARG_WEIGHTS, primitive.weight},
                            {DNNL_ARG_DST, primitive.y}});
}

void OneDnnProduct::Run(int worker_index,
                        const ProductInput& input,
                        const ProductWeight& weight,
                        PanelRange panels,
                        const ProductOutput& output) {
  ZP_CHECK(input.rows <= kWidenedRunBlocks * kRowBlock) << input.rows;
  omp_set_num_threads(1);  // of this worker's thread: oneDNN must not start threads of its own
  Worker& worker = *workers_[worker_index];
  const int64_t in_place_rows = Gather(worker, input, weight.in_dim);
  const int64_t row_bytes = weight.in_dim * static_cast<int64_t>(spec::SizeOf(product_dtype_));
  const int64_t outputs = PanelOutputs(weight.gated);
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const int64_t columns = ColumnsOf(p, weight.out_dim, weight.gated);
    const std::byte* panel = PanelOf(worker, weight, p);
    for (int64_t call = 0; call < CallCount(input.rows); ++call) {
      const auto [begin, end] = CallRows(input.rows, call);
      const std::byte* x = begin < in_place_rows ? input.data : worker.rows.data();
      Multiply(worker, x + begin * row_bytes, end - begin, panel, columns, weight.in_dim);
      FinishRows(worker.sums.as<float>(),
                 begin,
                 std::min(end, input.rows),
                 columns,
                 std::min(outputs, weight.out_dim - p * outputs),
                 p * outputs,
                 weight.gated,
                 output);
    }
  }
}

}  // namespace zp::ops::cpu
