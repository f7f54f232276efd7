// Times every operation at the shapes of Qwen3-30B-A3B: one JSON line per case, on all threads.
//
//   bench_ops [threads] [rows] [bf16|f32]
//
// Cases run in turn, several times over; each line gives the median, and products their share of
// the peak measured in the same run.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "ops/cpu/cpu_kernels.h"
#include "ops/cpu/random_fp8.h"
#include "ops/cpu/random_matrix.h"

namespace zp::ops::cpu {
namespace {

constexpr int64_t kModelDim = 2048;
constexpr int64_t kExpertDim = 768;
constexpr int64_t kExpertCount = 128;
constexpr int64_t kExpertsPerToken = 8;
constexpr int32_t kHeadDim = 128;
constexpr int32_t kQueryHeads = 32;
constexpr int64_t kQueryDim = int64_t{kQueryHeads} * kHeadDim;
constexpr int64_t kVocabCount = 151936;
constexpr int kRounds = 5;

struct Case {
  std::string op;
  std::string shape;
  double flops = 0;  // 0: no product
  std::function<void()> run;
  std::vector<double> seconds = {};
};

double TimeOnce(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Print(Case& c, int64_t rows, const Kernels& kernels, double peak_flops) {
  std::sort(c.seconds.begin(), c.seconds.end());
  const double seconds = c.seconds[c.seconds.size() / 2];
  fmt::print(R"({{"op":"{}","shape":"{}","rows":{},"kernels":"{}","ms":{:.3f},"gflops":{:.1f},)"
             R"("peak_gflops":{:.1f},"peak_fraction":{:.3f}}})"
             "\n",
             c.op,
             c.shape,
             rows,
             kernels.name(),
             seconds * 1e3,
             c.flops / seconds / 1e9,
             peak_flops / 1e9,
             c.flops / seconds / peak_flops);
}

// All the memory the cases share.
class Bench {
 public:
  Bench(int thread_count, int64_t rows, spec::DType dtype)
      : rows_(rows),
        dtype_(dtype),
        pool_(thread_count),
        kernels_(CreateKernels(dtype, pool_).value()),
        x_(RandomMatrix(random_, dtype, rows, kModelDim)),
        heads_(RandomMatrix(random_, dtype, rows, kQueryDim)),
        residual_(RandomMatrix(random_, spec::DType::kF32, rows, kModelDim)),
        wide_(MakeMatrix(dtype, rows, kQueryDim)),
        router_logits_(RandomMatrix(random_, spec::DType::kF32, rows, kExpertCount)),
        logits_(RandomMatrix(random_, spec::DType::kF32, kLogitRows, kVocabCount)),
        norm_weight_(kModelDim, 1.0f),
        positions_(rows),
        expert_ids_(rows * kExpertsPerToken),
        expert_weights_(rows * kExpertsPerToken),
        asks_(kLogitRows, LogitAsk{.columns = {}, .top_count = 5}),
        answers_(kLogitRows) {
    std::iota(positions_.begin(), positions_.end(), 0);
    angles_.resize(rows * kHeadDim / 2, 0.5f);
    routing_ = {expert_ids_, expert_weights_, kExpertsPerToken};
    kernels_->RouteExperts(router_logits_.view, true, routing_);
    PackBank();
    PackFp8Bank();
    PackDense();
  }

  void Run() {
    double peak_flops = 0;
    std::vector<Case> cases = Cases();
    for (int round = 0; round <= kRounds; ++round) {
      peak_flops = std::max(peak_flops, MeasurePeakFlops(dtype_, pool_, 0.1));
      for (Case& c : cases) {
        const double seconds = TimeOnce(c.run);
        if (round > 0) {  // the first fills caches and scratch memory
          c.seconds.push_back(seconds);
        }
      }
    }
    for (Case& c : cases) {
      Print(c, rows_, *kernels_, peak_flops);
    }
  }

 private:
  static constexpr int64_t kLogitRows = 16;

  memory::Buffer PackRandom(int64_t out_dim, int64_t in_dim) {
    const OwnedMatrix weight = RandomMatrix(random_, spec::DType::kBf16, out_dim, in_dim, 0.02f);
    memory::Buffer packed(kernels_->packed_bytes(out_dim, in_dim), "bench");
    kernels_->Pack(weight.view, packed.bytes());
    return packed;
  }

  void PackDense() {
    query_ = PackRandom(kQueryDim, kModelDim);
    output_ = PackRandom(kModelDim, kQueryDim);
    router_ = PackRandom(kExpertCount, kModelDim);
  }

  void PackBank() {
    const ExpertLayout layout = kernels_->expert_layout(kModelDim, kExpertDim);
    const OwnedMatrix gate = RandomMatrix(random_, spec::DType::kBf16, kExpertDim, kModelDim, .02f);
    const OwnedMatrix down = RandomMatrix(random_, spec::DType::kBf16, kModelDim, kExpertDim, .02f);
    bank_memory_ = memory::Buffer(layout.bytes * kExpertCount, "bench");
    for (int64_t expert = 0; expert < kExpertCount; ++expert) {
      std::byte* blob = bank_memory_.data() + static_cast<size_t>(expert) * layout.bytes;
      kernels_->PackExpert(gate.view, gate.view, down.view, {blob, layout.bytes});
      blobs_.push_back(blob);
    }
    bank_ = {layout, blobs_};
  }

  void PackFp8Bank() {
    constexpr spec::Fp8Blocks kBlocks = {128, 128};
    const ExpertLayout layout = kernels_->expert_layout(kModelDim, kExpertDim, kBlocks);
    const OwnedFp8 gate = RandomFp8(random_, kExpertDim, kModelDim, kBlocks, .02f);
    const OwnedFp8 down = RandomFp8(random_, kModelDim, kExpertDim, kBlocks, .02f);
    fp8_bank_memory_ = memory::Buffer(layout.bytes * kExpertCount, "bench");
    for (int64_t expert = 0; expert < kExpertCount; ++expert) {
      std::byte* blob = fp8_bank_memory_.data() + static_cast<size_t>(expert) * layout.bytes;
      if (expert == 0) {
        kernels_->PackFp8Expert(gate.view(), gate.view(), down.view(), {blob, layout.bytes});
      } else {
        std::memcpy(blob, fp8_blobs_[0], layout.bytes);
      }
      fp8_blobs_.push_back(blob);
    }
    fp8_bank_ = {layout, fp8_blobs_};
  }

  Case Product(
      const std::string& name, const memory::Buffer& weight, Matrix x, Matrix y, bool add) {
    const PackedWeight packed{weight.data(), y.cols, x.cols};
    return {.op = name,
            .shape = fmt::format("{} -> {}", x.cols, y.cols),
            .flops = 2.0 * static_cast<double>(x.rows * x.cols * y.cols),
            .run = [=, this] {
              add ? kernels_->MatMulAdd(x, packed, y) : kernels_->MatMul(x, packed, y);
            }};
  }

  std::vector<Case> Cases() {
    const RopeTable rope{angles_, angles_, kHeadDim / 2};
    const std::span<const float> head_norm(norm_weight_.data(), kHeadDim);
    std::vector<Case> cases;
    cases.push_back(Product("matmul", query_, x_.view, wide_.view, false));
    cases.push_back(Product("matmul_add", output_, heads_.view, residual_.view, true));
    cases.push_back(Product("matmul", router_, x_.view, router_logits_.view, false));
    cases.push_back(
        {.op = "expert_ffn",
         .shape = "2048/768, 8 of 128",
         .flops = 6.0 * static_cast<double>(rows_ * kExpertsPerToken) *
                  static_cast<double>(kModelDim * kExpertDim),
         .run = [this] { kernels_->ExpertFfn(x_.view, routing_, bank_, residual_.view); }});
    cases.push_back(
        {.op = "expert_ffn fp8",
         .shape = "2048/768, 8 of 128",
         .flops = 6.0 * static_cast<double>(rows_ * kExpertsPerToken) *
                  static_cast<double>(kModelDim * kExpertDim),
         .run = [this] { kernels_->ExpertFfn(x_.view, routing_, fp8_bank_, residual_.view); }});
    cases.push_back({.op = "rms_norm", .shape = "2048", .run = [this] {
                       kernels_->RmsNorm(residual_.view, norm_weight_, 1e-6f, x_.view);
                     }});
    cases.push_back({.op = "head_norm_rope", .shape = "32 x 128", .run = [=, this] {
                       kernels_->HeadNormRope(
                           heads_.view, kHeadDim, head_norm, 1e-6f, positions_, rope);
                     }});
    cases.push_back({.op = "route_experts", .shape = "8 of 128", .run = [this] {
                       kernels_->RouteExperts(router_logits_.view, true, routing_);
                     }});
    cases.push_back({.op = "reduce_logits", .shape = "16 rows of 151936, top 5", .run = [this] {
                       kernels_->ReduceLogits(logits_.view, asks_, answers_);
                     }});
    return cases;
  }

  const int64_t rows_;
  const spec::DType dtype_;
  std::mt19937 random_{1};
  base::ThreadPool pool_;
  std::unique_ptr<Kernels> kernels_;
  OwnedMatrix x_, heads_, residual_, wide_, router_logits_, logits_;
  std::vector<float> norm_weight_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> expert_ids_;
  std::vector<float> expert_weights_;
  std::vector<LogitAsk> asks_;
  std::vector<LogitAnswer> answers_;
  std::vector<float> angles_;
  Routing routing_;
  memory::Buffer query_, output_, router_, bank_memory_, fp8_bank_memory_;
  std::vector<const std::byte*> blobs_, fp8_blobs_;
  ExpertBank bank_, fp8_bank_;
};

}  // namespace
}  // namespace zp::ops::cpu

int main(int argc, char** argv) {
  const int thread_count = argc > 1 ? std::atoi(argv[1]) : 2;
  const int64_t rows = argc > 2 ? std::atoll(argv[2]) : 2048;
  const std::string dtype = argc > 3 ? argv[3] : "bf16";
  if (thread_count < 1 || rows < 1 || (dtype != "bf16" && dtype != "f32")) {
    fmt::print(stderr, "usage: bench_ops [threads] [rows] [bf16|f32]\n");
    return 1;
  }
  zp::ops::cpu::Bench(
      thread_count, rows, dtype == "f32" ? zp::spec::DType::kF32 : zp::spec::DType::kBf16)
      .Run();
  return 0;
}
