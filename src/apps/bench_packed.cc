#include "apps/bench_packed.h"

#include <filesystem>
#include <memory>
#include <span>

#include "apps/progress.h"
#include "base/checksum.h"
#include "checkpoint/packed_experts.h"
#include "checkpoint/synthetic.h"
#include "fmt/format.h"
#include "model/pack_checkpoint.h"
#include "ops/cpu/cpu_kernels.h"

namespace zp::apps {

absl::StatusOr<std::string> PackedBenchDirectory(const std::string& name,
                                                 const spec::ModelSpec& spec,
                                                 const std::string& work_directory,
                                                 base::ThreadPool& pool,
                                                 std::optional<spec::Fp8Blocks> fp8_blocks,
                                                 spec::DType dtype) {
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<ops::Kernels> kernels,
                      ops::cpu::CreateKernels(dtype, pool));
  const std::string layout = kernels->layout_name(fp8_blocks);
  const std::string directory =
      fmt::format("zeroprefill-{}-{}-{:08x}",
                  name,
                  spec.layer_count,
                  base::Checksum(std::as_bytes(std::span(layout))) & 0xffffffff);
  const std::filesystem::path root = work_directory.empty() ? "/var/tmp" : work_directory;
  const std::string packed = (root / directory).string();
  if (checkpoint::IsPacked(packed)) {
    return packed;
  }
  const std::string source = packed + ".source";
  if (!std::filesystem::exists(source + "/config.json")) {
    ZP_RETURN_IF_ERROR(checkpoint::WriteSyntheticFiles(spec, source, fp8_blocks));
  }
  Progress progress("pack");
  ProgressCounts counts;
  const auto report = [&](const model::PackProgress& now) {
    counts.bytes = now.written_bytes;
    counts.done_share =
        static_cast<double>(now.written_bytes) / static_cast<double>(now.total_bytes);
    progress.Update(counts);
  };
  const auto weights = checkpoint::CreateSynthetic(spec, 1, source, fp8_blocks);
  ZP_RETURN_IF_ERROR(model::PackCheckpoint(*weights, *kernels, pool, packed, report).status());
  progress.Finish(counts);
  return packed;
}

}  // namespace zp::apps
