// Speed of attention by itself: one JSON line a case, each the median of interleaved rounds, beside
// the peak of the same threads measured in the same rounds.
//
//   bench_attention [--threads N] [--rounds N] [--dtype bf16|f32] [case ...]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/bfloat16.h"
#include "base/thread_pool.h"
#include "fmt/format.h"
#include "memory/buffer.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/cpu_kernels.h"

namespace zp::ops::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// `sequence_count` sequences, each of `own_tokens` after a prefix of `prefix_tokens` that they
// share (and that is computed once).
struct Workload {
  std::string name;
  int32_t query_heads = 32;
  int32_t kv_heads = 4;
  int32_t head_dim = 128;
  int32_t prefix_tokens = 0;
  int32_t sequence_count = 1;
  int32_t own_tokens = 0;
};

const Workload kWorkloads[] = {
    {"prompt_256x32", 32, 4, 128, 0, 32, 256},
    {"prompt_2048x4", 32, 4, 128, 0, 4, 2048},
    {"prompt_8192", 32, 4, 128, 0, 1, 8192},
    // One KV head of four: the same work a head in a quarter of the time.
    {"prompt_32768_one_kv_head", 8, 1, 128, 0, 1, 32768},
    {"prompt_32768", 32, 4, 128, 0, 1, 32768},
    {"leaves_64x5_after_900", 32, 4, 128, 900, 64, 5},
    {"leaves_500x1_after_500", 32, 4, 128, 500, 500, 1},
    {"prompt_40x200", 32, 4, 128, 0, 200, 40},
    {"prompt_40x10", 32, 4, 128, 0, 10, 40},
    {"heads_16to16x64_2048x4", 16, 16, 64, 0, 4, 2048},
    {"heads_28to4x128_2048x4", 28, 4, 128, 0, 4, 2048},
};

// The memory and the segments of one workload.
class Trial {
 public:
  Trial(const Workload& workload, spec::DType dtype, Attention& attention)
      : workload_(workload), attention_(attention) {
    shape_ = {workload.query_heads,
              workload.kv_heads,
              workload.head_dim,
              1.0f / std::sqrt(static_cast<float>(workload.head_dim))};
    BuildSegments();
    q_ = Allocate(q_memory_, workload.query_heads, dtype);
    out_ = Allocate(out_memory_, workload.query_heads, dtype);
    k_ = Allocate(k_memory_, workload.kv_heads, dtype);
    v_ = Allocate(v_memory_, workload.kv_heads, dtype);
    const size_t block_bytes = attention.kv_block_bytes(shape_);
    block_memory_.EnsureBytes(block_count_ * block_bytes, "bench");
    for (int i = 0; i < block_count_; ++i) {
      blocks_.push_back(block_memory_.data() + i * block_bytes);
    }
  }

  void WriteKv() { attention_.WriteKv(k_, v_, writes_, shape_, {blocks_}); }
  void Attend() { attention_.Attend(q_, segments_, shape_, {blocks_}, out_); }

  int64_t token_count() const { return row_count_; }
  double flops() const {
    double pairs = 0;
    for (const AttentionSegment& segment : segments_) {
      const double rows = segment.row_count;
      pairs += rows * segment.position_begin + rows * (rows + 1) / 2;
    }
    return 4.0 * shape_.query_head_count * shape_.head_dim * pairs;
  }
  double kv_bytes() const { return 2.0 * row_count_ * k_.cols * spec::SizeOf(k_.dtype); }

 private:
  void BuildSegments() {
    std::vector<KvBlockId> prefix;
    AddSegment(0, workload_.prefix_tokens, prefix);
    paths_.reserve(workload_.sequence_count + 1);
    paths_.push_back(prefix);
    if (workload_.prefix_tokens > 0) {
      segments_.push_back({0, workload_.prefix_tokens, 0, paths_[0]});
    }
    for (int32_t i = 0; i < workload_.sequence_count; ++i) {
      std::vector<KvBlockId> path = prefix;
      if (workload_.prefix_tokens % kKvBlockTokens != 0) {
        path.back() = block_count_++;
      }
      const int64_t row_begin = row_count_;
      AddSegment(workload_.prefix_tokens, workload_.own_tokens, path);
      paths_.push_back(std::move(path));
      segments_.push_back(
          {row_begin, workload_.own_tokens, workload_.prefix_tokens, paths_.back()});
    }
  }
  void AddSegment(int32_t position_begin, int32_t count, std::vector<KvBlockId>& path) {
    for (int32_t position = position_begin; position < position_begin + count; ++position) {
      if (position % kKvBlockTokens == 0) {
        path.push_back(block_count_++);
      }
      writes_.push_back({row_count_++, path.back(), position % kKvBlockTokens});
    }
  }
  Matrix Allocate(memory::Buffer& memory, int32_t heads, spec::DType dtype) {
    const int64_t cols = int64_t{heads} * workload_.head_dim;
    memory.EnsureBytes(row_count_ * cols * spec::SizeOf(dtype), "bench");
    const Matrix matrix{memory.data(), dtype, row_count_, cols, cols};
    std::minstd_rand random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t i = 0; i < row_count_ * cols; ++i) {
      if (dtype == spec::DType::kF32) {
        memory.as<float>()[i] = uniform(random);
      } else {
        memory.as<base::BFloat16>()[i] = base::BFloat16(uniform(random));
      }
    }
    return matrix;
  }

  const Workload& workload_;
  Attention& attention_;
  AttentionShape shape_;
  int64_t row_count_ = 0;
  int32_t block_count_ = 0;
  std::vector<std::vector<KvBlockId>> paths_;
  std::vector<AttentionSegment> segments_;
  std::vector<KvWrite> writes_;
  memory::Buffer q_memory_, out_memory_, k_memory_, v_memory_, block_memory_;
  Matrix q_, out_, k_, v_;
  std::vector<std::byte*> blocks_;
};

double Seconds(const auto& work) {
  const auto begin = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Options {
  int threads = 2;
  int rounds = 5;
  spec::DType dtype = spec::DType::kBf16;
  std::vector<std::string> cases;
};

Options ParseOptions(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (argument == "--threads") {
      options.threads = std::max(1, std::atoi(value.c_str()));
      ++i;
    } else if (argument == "--rounds") {
      options.rounds = std::max(1, std::atoi(value.c_str()));
      ++i;
    } else if (argument == "--dtype") {
      options.dtype = value == "f32" ? spec::DType::kF32 : spec::DType::kBf16;
      ++i;
    } else {
      options.cases.push_back(argument);
    }
  }
  return options;
}

bool Selected(const Options& options, const std::string& name) {
  return options.cases.empty() ||
         std::find(options.cases.begin(), options.cases.end(), name) != options.cases.end();
}

struct Samples {
  std::vector<double> attend_s, write_s, peak_fraction;
};

void PrintResult(const Options& options,
                 const Workload& workload,
                 const Trial& trial,
                 const Samples& samples) {
  const double attend_s = Median(samples.attend_s);
  const double write_s = Median(samples.write_s);
  fmt::print(
      "{{\"bench\": \"attention\", \"case\": \"{}\", \"dtype\": \"{}\", \"threads\": {}, "
      "\"query_heads\": {}, \"kv_heads\": {}, \"head_dim\": {}, \"tokens\": {}, "
      "\"attend_ms\": {:.2f}, \"gflops_per_s\": {:.1f}, \"peak_fraction\": {:.3f}, "
      "\"write_kv_ms\": {:.2f}, \"write_kv_gb_per_s\": {:.1f}, \"write_kv_share\": {:.3f}}}\n",
      workload.name,
      spec::NameOf(options.dtype),
      options.threads,
      workload.query_heads,
      workload.kv_heads,
      workload.head_dim,
      trial.token_count(),
      attend_s * 1e3,
      trial.flops() / attend_s * 1e-9,
      Median(samples.peak_fraction),
      write_s * 1e3,
      trial.kv_bytes() / write_s * 1e-9,
      write_s / (write_s + attend_s));
}

int Main(int argc, char** argv) {
  const Options options = ParseOptions(argc, argv);
  base::ThreadPool pool(options.threads);
  Attention attention(options.dtype, pool);
  std::vector<const Workload*> workloads;
  std::vector<Trial> trials;
  trials.reserve(std::size(kWorkloads));
  for (const Workload& workload : kWorkloads) {
    if (Selected(options, workload.name)) {
      workloads.push_back(&workload);
      trials.emplace_back(workload, options.dtype, attention);
      trials.back().WriteKv();
    }
  }
  std::vector<Samples> samples(trials.size());
  std::vector<double> peaks;
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < trials.size(); ++i) {
      const double peak = MeasurePeakFlops(options.dtype, pool, 0.05);
      peaks.push_back(peak);
      samples[i].write_s.push_back(Seconds([&] { trials[i].WriteKv(); }));
      samples[i].attend_s.push_back(Seconds([&] { trials[i].Attend(); }));
      samples[i].peak_fraction.push_back(trials[i].flops() / samples[i].attend_s.back() / peak);
    }
  }
  for (size_t i = 0; i < trials.size(); ++i) {
    PrintResult(options, *workloads[i], trials[i], samples[i]);
  }
  fmt::print("{{\"bench\": \"attention\", \"peak_gflops_per_s\": {:.1f}}}\n", Median(peaks) * 1e-9);
  return 0;
}

}  // namespace
}  // namespace zp::ops::cpu

int main(int argc, char** argv) { return zp::ops::cpu::Main(argc, argv); }
