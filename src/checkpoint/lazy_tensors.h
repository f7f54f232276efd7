// Tensors that are made when they are first asked for, freed when released, and made again, the
// same, when asked for once more.
//
// Thread safety: any thread; two that ask for one tensor wait for one making. A view must not be
// read after its Release, from any thread. Ownership: the numbers live here.
#pragma once

#include <cstddef>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "checkpoint/checkpoint.h"
#include "memory/buffer.h"

namespace zp::checkpoint {

struct MadeTensor {
  TensorView view;         // of `numbers`
  memory::Buffer numbers;  // not empty
};

class LazyTensors {
 public:
  explicit LazyTensors(size_t slot_count);

  const TensorView& Get(size_t slot, absl::FunctionRef<MadeTensor()> make);

  // False if the tensor was not made here, or was released before.
  bool Release(const TensorView& tensor);

 private:
  struct Entry {
    std::mutex mutex;
    MadeTensor made;
  };

  Entry* TakeEntry(const std::byte* data);

  std::vector<Entry> entries_;  // [slot_count]
  // A view may be copied, so Release finds its tensor by where the numbers lie. Locked within an
  // entry's mutex, never around it.
  std::mutex made_mutex_;
  std::unordered_map<const std::byte*, Entry*> made_;
};

}  // namespace zp::checkpoint
