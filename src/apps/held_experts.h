// All experts of a model, mapped from the files of a packed directory: processes of one machine
// that do share one copy. The provider of the wind tunnel's resident ranks: nothing is ever waited
// for.
//
// Thread safety: as ExpertProvider. Ownership: owns the mappings.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "checkpoint/packed_experts.h"
#include "experts/expert_provider.h"
#include "fabric/descriptor.h"

namespace zp::apps {

class HeldExperts final : public experts::ExpertProvider {
 public:
  // `directory` holds the files of `packed` under the same names. Every page is there when this
  // returns. Errors: the system's, with the file.
  static absl::StatusOr<std::unique_ptr<HeldExperts>> Map(const checkpoint::PackedExperts& packed,
                                                          const std::string& directory);
  // Experts that lie elsewhere, [layer][expert], and stay there.
  explicit HeldExperts(std::vector<std::vector<const std::byte*>> blobs)
      : blobs_(std::move(blobs)) {}
  ~HeldExperts() override;
  HeldExperts(const HeldExperts&) = delete;
  HeldExperts& operator=(const HeldExperts&) = delete;

  int32_t window_slot_count() const override { return 2; }
  experts::GatherTicket StartGather(experts::LayerIndex layer) override { return {this, layer, 0}; }
  absl::StatusOr<std::span<const std::byte* const>> Wait(
      const experts::GatherTicket& ticket) override {
    return std::span<const std::byte* const>(blobs_[ticket.layer()]);
  }
  const experts::GatherReport& report(const experts::GatherTicket&) const override {
    return report_;
  }
  std::vector<std::string> source_names() const override { return {}; }
  double exposed_wait_seconds() const override { return 0; }

 private:
  void Release(int32_t) override {}

  std::vector<std::vector<const std::byte*>> blobs_;  // [layer][expert]
  std::vector<std::span<std::byte>> mappings_;
  const experts::GatherReport report_ = {};
};

// A directory in memory with a copy of the experts' files of a packed directory, in huge pages
// where the system gives them. It has no name in the file system: it goes when this process does,
// however that ends. Needs root.
class ExpertCopies {
 public:
  static absl::StatusOr<std::unique_ptr<ExpertCopies>> Make(
      const checkpoint::PackedExperts& packed);

  // For this process and those that it starts.
  const std::string& directory() const { return directory_; }
  double huge_page_fraction() const { return huge_page_fraction_; }

 private:
  explicit ExpertCopies(fabric::Descriptor descriptor);

  const fabric::Descriptor descriptor_;
  const std::string directory_;
  double huge_page_fraction_ = 0;
};

}  // namespace zp::apps
