#include "checkpoint/lazy_tensors.h"

namespace zp::checkpoint {

LazyTensors::LazyTensors(size_t slot_count) : entries_(slot_count) {}

const TensorView& LazyTensors::Get(size_t slot, absl::FunctionRef<MadeTensor()> make) {
  Entry& entry = entries_[slot];
  std::lock_guard lock(entry.mutex);
  if (entry.made.numbers.empty()) {
    entry.made = make();
    std::lock_guard made_lock(made_mutex_);
    made_[entry.made.numbers.data()] = &entry;
  }
  return entry.made.view;
}

bool LazyTensors::Release(const TensorView& tensor) {
  Entry* entry = TakeEntry(tensor.bytes.data());
  if (entry == nullptr) {
    return false;
  }
  std::lock_guard lock(entry->mutex);
  entry->made.numbers = memory::Buffer();
  entry->made.view.bytes = {};
  return true;
}

LazyTensors::Entry* LazyTensors::TakeEntry(const std::byte* data) {
  std::lock_guard lock(made_mutex_);
  const auto found = made_.find(data);
  if (found == made_.end()) {
    return nullptr;
  }
  Entry* entry = found->second;
  made_.erase(found);
  return entry;
}

}  // namespace zp::checkpoint
