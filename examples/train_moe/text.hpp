// SPDX-License-Identifier: MIT
// The text: read from files, shuffled in blocks, split, and sampled into batches.
#ifndef TRAIN_MOE_TEXT_HPP
#define TRAIN_MOE_TEXT_HPP

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <gatepro/core/views.hpp>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"
#include "random.hpp"

namespace train_moe {

using gatepro::Index;
using gatepro::RowMatrix;

/// T places in the text: C bytes each, and the byte that follows. Places come in windows of
/// consecutive ones.
struct Batch {
  RowMatrix<std::uint8_t> context_TC;
  std::vector<std::uint8_t> target_T;
};

/// Blocks of text in random order, the last ones for validation.
///
/// Neighbouring files resemble each other; shuffling blocks gives both parts the same mix. A batch
/// never crosses a border between blocks, so no training byte is ever seen in validation.
class Text {
 public:
  static constexpr Index block_bytes = 4096;

  /// The order of the blocks is the same for all seeds, so validation losses compare across them.
  explicit Text(std::string bytes) : bytes_(std::move(bytes)) {
    const Index blocks = size() / block_bytes;
    if (blocks < 2) {
      throw UserError("the text has " + std::to_string(size()) + " bytes, but needs at least " +
                      std::to_string(2 * block_bytes) + ": give more with --text");
    }
    for (Index block = 0; block < blocks; ++block) block_start_.push_back(block * block_bytes);
    Random random(0, Stream::block_order);
    for (std::size_t i = block_start_.size() - 1; i > 0; --i) {
      std::swap(block_start_[i], block_start_[random.below(i + 1)]);
    }
    training_blocks_ = blocks - std::max<Index>(1, blocks / 20);
  }

  Index size() const { return static_cast<Index>(bytes_.size()); }

  /// The batch of one training step: the same for every arm.
  Batch training_batch(std::uint64_t seed, std::uint64_t step, Index tokens, Index context,
                       Index window = 1) const {
    return sample(Random(seed, Stream::training, step), 0, training_blocks_, tokens, context,
                  window);
  }

  /// One fixed batch of the validation part.
  Batch validation_batch(Index tokens, Index context, Index window = 1) const {
    const Index blocks = static_cast<Index>(block_start_.size());
    return sample(Random(0, Stream::validation), training_blocks_, blocks, tokens, context, window);
  }

 private:
  Batch sample(Random random, Index first_block, Index end_block, Index tokens, Index context,
               Index window) const {
    Batch batch{RowMatrix<std::uint8_t>(tokens, context), {}};
    Index start = 0;
    for (Index t = 0; t < tokens; ++t, ++start) {
      const auto draw = [&random](Index count) {
        return static_cast<Index>(random.below(static_cast<std::uint64_t>(count)));
      };
      if (t % window == 0) {
        const Index block = first_block + draw(end_block - first_block);
        start = block_start_[static_cast<std::size_t>(block)] +
                draw(block_bytes - context - window + 1);
      }
      for (Index c = 0; c < context; ++c) batch.context_TC(t, c) = byte(start + c);
      batch.target_T.push_back(byte(start + context));
    }
    return batch;
  }

  std::uint8_t byte(Index i) const {
    return static_cast<std::uint8_t>(bytes_[static_cast<std::size_t>(i)]);
  }

  std::string bytes_;
  std::vector<Index> block_start_;
  Index training_blocks_ = 0;
};

/// The bytes of a file.
inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad()) {
    throw UserError("cannot read " + path.string() +
                    ": check its permissions, or choose another "
                    "--text");
  }
  return bytes;
}

/// The bytes of a file, or of all files below a folder but hidden ones, in the order of their
/// names, which is the same everywhere.
inline std::string read_text(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw UserError("there is no file or folder " + path.string() +
                    ": give an existing one with --text");
  }
  if (!fs::is_directory(path, error)) return read_file(path);

  std::vector<fs::path> files;
  for (fs::recursive_directory_iterator entry(path, error), end; entry != end && !error;
       entry.increment(error)) {
    const bool hidden = entry->path().filename().string().front() == '.';
    if (hidden && entry->is_directory()) entry.disable_recursion_pending();
    if (!hidden && entry->is_regular_file()) files.push_back(entry->path());
  }
  if (error) {
    throw UserError("cannot list " + path.string() + " (" + error.message() +
                    "): choose another --text");
  }
  std::sort(files.begin(), files.end());
  std::string bytes;
  for (const fs::path& file : files) bytes += read_file(file);
  return bytes;
}

}  // namespace train_moe

#endif  // TRAIN_MOE_TEXT_HPP
