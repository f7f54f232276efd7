#include "apps/pack.h"

#include <algorithm>
#include <memory>
#include <string>
#include <thread>

#include "apps/command.h"
#include "apps/progress.h"
#include "base/thread_pool.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "fmt/format.h"
#include "model/pack_checkpoint.h"
#include "ops/cpu/cpu_kernels.h"

namespace zp::apps {
namespace {

struct PackOptions {
  std::string model_directory;
  std::string packed_directory;
  std::string dtype = "bf16";
  int threads = 0;
};

absl::Status Pack(const PackOptions& options) {
  ZP_ASSIGN_OR_RETURN(const spec::DType dtype, ParseDType(options.dtype));
  base::ThreadPool pool(options.threads > 0
                            ? options.threads
                            : std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<ops::Kernels> kernels,
                      ops::cpu::CreateKernels(dtype, pool));
  ZP_ASSIGN_OR_RETURN(const std::unique_ptr<checkpoint::Checkpoint> checkpoint,
                      checkpoint::Checkpoint::Open(options.model_directory));
  Progress progress("pack");
  ProgressCounts counts;
  ZP_ASSIGN_OR_RETURN(const model::PackProgress packed,
                      model::PackCheckpoint(*checkpoint,
                                            *kernels,
                                            pool,
                                            options.packed_directory,
                                            [&](const model::PackProgress& now) {
                                              counts.bytes = now.written_bytes;
                                              counts.done_share =
                                                  static_cast<double>(now.written_bytes) /
                                                  static_cast<double>(now.total_bytes);
                                              progress.Update(counts);
                                            }));
  progress.Finish(counts);
  fmt::print("{}: {} packed for '{}' in {:.1f} s, {:.2f} GB/s\n",
             options.packed_directory,
             base::FormatBytes(packed.written_bytes),
             kernels->layout_name(checkpoint->expert_fp8_blocks()),
             progress.seconds(),
             static_cast<double>(packed.written_bytes) / 1e9 / progress.seconds());
  return absl::OkStatus();
}

}  // namespace

void AddPackCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "pack",
      "Write a model once more, its experts as the bytes that the kernels read; experts of 8-bit "
      "numbers stay so");
  auto options = std::make_shared<PackOptions>();
  command->add_option("model", options->model_directory, "A Hugging Face model folder")->required();
  command
      ->add_option("output",
                   options->packed_directory,
                   "The folder to write: new, empty, or with a packing that was cut short")
      ->required();
  command->add_option("--dtype", options->dtype, "Activations it is packed for: bf16 or f32")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Threads that pack; 0 is one per core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->callback([options] { ExitOnError(Pack(*options)); });
}

}  // namespace zp::apps
