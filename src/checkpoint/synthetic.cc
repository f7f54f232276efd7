#include "checkpoint/synthetic.h"

#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "checkpoint/synthetic_tensors.h"
#include "checkpoint/tensor_table.h"
#include "memory/buffer.h"

namespace zp::checkpoint {
namespace {

class SyntheticCheckpoint final : public Checkpoint {
 public:
  SyntheticCheckpoint(const spec::ModelSpec& spec, uint64_t seed)
      : spec_(spec), seed_(seed), slots_(spec), entries_(slots_.slot_count()) {}

  const spec::ModelSpec& spec() const override { return spec_; }
  const std::string& directory() const override { return directory_; }

  const TensorView& Tensor(TensorRole role, int32_t layer, int32_t expert) const override {
    const bool is_tied_head = role == TensorRole::kOutputHead && spec_.tied_embeddings;
    const TensorKey key = {is_tied_head ? TensorRole::kEmbedding : role, layer, expert};
    Entry& entry = entries_[slots_.SlotOf(key)];
    std::lock_guard lock(entry.mutex);
    if (entry.numbers.empty()) {
      Generate(key, entry);
    }
    return entry.view;
  }

  std::string TensorName(TensorRole role, int32_t layer, int32_t expert) const override {
    return SyntheticName({role, layer, expert});
  }

  void Release(const TensorView& tensor) const override {
    Entry* entry = TakeEntry(tensor.bytes.data());
    if (entry != nullptr) {
      std::lock_guard lock(entry->mutex);
      entry->numbers = memory::Buffer();
      entry->view.bytes = {};
    }
  }

 private:
  struct Entry {
    std::mutex mutex;
    TensorView view;
    memory::Buffer numbers;
  };

  void Generate(const TensorKey& key, Entry& entry) const {
    entry.numbers = memory::Buffer(TensorBytes(spec_, key.role), "synthetic weights");
    SyntheticNumbers(spec_, seed_, key).Fill(0, entry.numbers.bytes());
    entry.view = {spec_.weight_dtype, ShapeOf(spec_, key.role), entry.numbers.bytes()};
    std::lock_guard lock(generated_mutex_);
    generated_[entry.numbers.data()] = &entry;
  }

  // nullptr if it was released before.
  Entry* TakeEntry(const std::byte* data) const {
    std::lock_guard lock(generated_mutex_);
    const auto found = generated_.find(data);
    if (found == generated_.end()) {
      return nullptr;
    }
    Entry* entry = found->second;
    generated_.erase(found);
    return entry;
  }

  const spec::ModelSpec spec_;
  const uint64_t seed_;
  const std::string directory_;
  const TensorSlots slots_;
  mutable std::vector<Entry> entries_;
  // A view may be copied, so Release finds its tensor by where the numbers lie. Locked within an
  // entry's mutex, never around it.
  mutable std::mutex generated_mutex_;
  mutable std::unordered_map<const std::byte*, Entry*> generated_;
};

}  // namespace

std::unique_ptr<Checkpoint> CreateSynthetic(const spec::ModelSpec& spec, uint64_t seed) {
  return std::make_unique<SyntheticCheckpoint>(spec, seed);
}

}  // namespace zp::checkpoint
