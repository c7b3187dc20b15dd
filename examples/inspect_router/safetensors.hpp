// SPDX-License-Identifier: MIT
// The header of a .safetensors file, and the index of a model in several of them.
#ifndef INSPECT_ROUTER_SAFETENSORS_HPP
#define INSPECT_ROUTER_SAFETENSORS_HPP

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "json_reader.hpp"
#include "tensor.hpp"

namespace inspect_router {

/// A tensor as a header describes it; types that routers do not have stay words.
struct StoredTensor {
  std::string dtype;
  Shape shape;
  std::uint64_t begin = 0, end = 0;  ///< Bytes from the start of the file.
};

namespace detail {

/// The bytes of an element, or 0 for types that are not known, or smaller than a byte.
inline std::uint64_t dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t> known = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};
  const auto found = known.find(dtype);
  return found == known.end() ? 0 : found->second;
}

class HeaderReader : public JsonReader {
 public:
  /// data: where the tensors' bytes start; size: that of the file.
  HeaderReader(const std::string& file, std::uint64_t data, std::uint64_t size)
      : JsonReader(file, "header", 3), data_(data), size_(size) {}

  std::map<std::string, StoredTensor> take() { return std::move(tensors_); }

 private:
  static constexpr std::uint64_t most = (std::uint64_t{1} << 63) - 1;

  bool in_metadata() const { return path()[0] == "__metadata__"; }

  void begin(bool is_array) override {
    if (depth() == 1 && is_array) fail("need an object");
    if (depth() == 1 && !in_metadata()) seen_ = {};
    if (depth() != 2) return;
    const bool list = path()[1] == "shape" || path()[1] == "data_offsets";
    if (in_metadata() || !is_array || !list) fail("need no object or list here");
    seen_[path()[1] == "shape" ? 1 : 2] = true;
  }

  void value(const JsonValue& element) override {
    if (depth() == 1) fail("need an object");
    if (in_metadata()) {
      text(element);
      return;
    }
    if (path()[1] == "dtype" && !in_array()) {
      dtype_ = text(element);
      seen_[0] = true;
    } else if (path()[1] == "shape" && in_array()) {
      shape_.push_back(whole(element, most));
      if (shape_.size() > 32) fail("has more than 32 dimensions");
    } else if (path()[1] == "data_offsets" && in_array()) {
      offsets_.push_back(whole(element, size_ - data_));
      if (offsets_.size() > 2) fail("need two offsets, begin and end");
    } else {
      fail("need only dtype, shape and data_offsets, the last two as lists");
    }
  }

  void end(bool is_array) override {
    if (depth() != 1 || is_array || in_metadata()) return;
    if (!seen_[0] || !seen_[1] || !seen_[2]) fail("need dtype, shape and data_offsets");
    if (offsets_.size() != 2 || offsets_[0] > offsets_[1]) {
      fail("need data_offsets of a begin and an end that is not before it");
    }
    const std::uint64_t bytes = dtype_bytes(dtype_);
    if (bytes != 0) {
      const std::uint64_t wanted =
          checked_bytes(file(), "tensor " + shown(path()[0]), shape_, bytes);
      if (wanted != offsets_[1] - offsets_[0]) {
        fail(dtype_ + " of shape " + text_of(shape_) + " needs " + std::to_string(wanted) +
             " bytes, but data_offsets span " + std::to_string(offsets_[1] - offsets_[0]));
      }
    }
    tensors_[path()[0]] = {dtype_, shape_, data_ + offsets_[0], data_ + offsets_[1]};
    shape_.clear();
    offsets_.clear();
  }

  std::uint64_t data_, size_;
  std::map<std::string, StoredTensor> tensors_;
  std::array<bool, 3> seen_{};  // dtype, shape, data_offsets
  std::string dtype_;
  Shape shape_, offsets_;
};

/// Tensors must follow one another without gaps or overlaps, to the end of the file.
inline void check_layout(const Source& source, std::uint64_t data,
                         const std::map<std::string, StoredTensor>& tensors) {
  std::vector<const std::pair<const std::string, StoredTensor>*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::uint64_t at = data;
  for (const auto* entry : order) {
    if (entry->second.begin != at) {
      refuse(source.name(), "tensor " + shown(entry->first),
             entry->second.begin < at ? "data_offsets overlap another tensor's"
                                      : "data_offsets leave a gap before it");
    }
    at = entry->second.end;
  }
  if (at != source.size()) {
    refuse(source.name(), "data_offsets",
           "the tensors end at byte " + std::to_string(at) + ", the file at " +
               std::to_string(source.size()));
  }
}

}  // namespace detail

/// The tensors of a .safetensors file; all that the header says has been checked against the
/// file's size. Tensors may stand at any alignment, as the format allows.
inline std::map<std::string, StoredTensor> read_safetensors_header(const Source& source) {
  const std::string digits = source.read(0, 8);
  std::uint64_t length = 0;
  for (std::size_t b = 8; b-- > 0;) length = length << 8 | static_cast<unsigned char>(digits[b]);
  constexpr std::uint64_t longest = 100000000;  // the format's own limit
  if (length > longest || length > source.size() - 8) {
    refuse(source.name(), "header length",
           "need at most 100000000 bytes, and no more than the file has (got " +
               std::to_string(length) + " in a file of " + std::to_string(source.size()) + ")");
  }
  const std::string header = source.read(8, length);
  if (header.empty() || header[0] != '{') {
    refuse(source.name(), "header", "need a JSON object that starts at once");
  }
  detail::HeaderReader reader(source.name(), 8 + length, source.size());
  reader.parse(header);
  auto tensors = reader.take();
  detail::check_layout(source, 8 + length, tensors);
  return tensors;
}

/// A stored tensor whose numbers can be read.
inline Tensor readable(const std::string& file, const std::string& name,
                       const StoredTensor& stored) {
  Tensor tensor{name, Scalar::float32, stored.shape, stored.begin};
  if (stored.dtype == "F32") {
    tensor.scalar = Scalar::float32;
  } else if (stored.dtype == "F16") {
    tensor.scalar = Scalar::float16;
  } else if (stored.dtype == "BF16") {
    tensor.scalar = Scalar::bfloat16;
  } else if (stored.dtype == "F64") {
    tensor.scalar = Scalar::float64;
  } else {
    refuse(file, "tensor " + shown(name),
           "need dtype F32, F16, BF16 or F64 (got " + shown(stored.dtype) + ")");
  }
  return tensor;
}

namespace detail {

class IndexReader : public JsonReader {
 public:
  explicit IndexReader(const std::string& file) : JsonReader(file, "index", 4) {}

  bool has_map = false;
  std::map<std::string, std::string> files;

 private:
  void begin(bool is_array) override {
    if (depth() == 1 && path()[0] == "weight_map") {
      if (is_array) fail("need an object");
      has_map = true;
    }
    if (depth() == 2 && path()[0] == "weight_map") fail("need the name of a file");
  }
  void value(const JsonValue& element) override {
    if (path()[0] != "weight_map") return;
    const std::string& name = text(element);
    const bool plain = !name.empty() && name[0] != '.' &&
                       name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
    if (depth() != 2 || !plain) fail("need the name of a file in the folder of the index");
    files[path()[1]] = name;
  }
};

}  // namespace detail

/// Which file holds which tensor, by a model.safetensors.index.json.
inline std::map<std::string, std::string> read_safetensors_index(const Source& source) {
  constexpr std::uint64_t longest = 100000000;
  if (source.size() > longest) {
    refuse(source.name(), "file", "need an index of at most 100000000 bytes");
  }
  detail::IndexReader reader(source.name());
  reader.parse(source.read(0, source.size()));
  if (!reader.has_map) refuse(source.name(), "index", "lacks weight_map");
  return std::move(reader.files);
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_SAFETENSORS_HPP
