// SPDX-License-Identifier: MIT
// The header of a .npy file (NumPy's format, versions 1 to 3).
#ifndef INSPECT_ROUTER_NPY_HPP
#define INSPECT_ROUTER_NPY_HPP

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "tensor.hpp"

namespace inspect_router {

namespace detail {

/// Reads the Python dictionary of a header: exactly the keys descr, fortran_order and shape.
class NpyDictionary {
 public:
  NpyDictionary(const std::string& file, std::string text) : file_(file), text_(std::move(text)) {}

  void read() {
    expect('{');
    while (!next('}')) {
      const std::string key = string("key");
      expect(':');
      value(key);
      if (!next(',')) {
        expect('}');
        break;
      }
    }
    skip_spaces();
    if (at_ != text_.size()) fail("has text behind the dictionary");
    if (!descr_) fail("lacks descr");
    if (!fortran_order_) fail("lacks fortran_order");
    if (!shape_) fail("lacks shape");
  }

  const std::string& descr() const { return *descr_; }
  bool fortran_order() const { return *fortran_order_; }
  const Shape& shape() const { return *shape_; }

 private:
  [[noreturn]] void fail(const std::string& rule) const {
    refuse(file_, "header", rule + " (at character " + std::to_string(at_) + ")");
  }

  void value(const std::string& key) {
    const bool known = key == "descr" || key == "fortran_order" || key == "shape";
    if (!known) fail("has a key other than descr, fortran_order and shape: " + shown(key));
    const bool again = (key == "descr" && descr_) || (key == "shape" && shape_) ||
                       (key == "fortran_order" && fortran_order_);
    if (again) fail("has the key " + key + " twice");
    if (key == "descr") {
      descr_ = string("descr");
    } else if (key == "shape") {
      shape_ = tuple();
    } else {
      fortran_order_ = boolean();
    }
  }

  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool next(char c) {
    skip_spaces();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!next(c)) fail(std::string("needs a '") + c + "'");
  }

  std::string string(const std::string& what) {
    skip_spaces();
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) {
      fail("needs a quoted string for " + what);
    }
    const std::size_t end = text_.find(text_[at_], at_ + 1);
    if (end == std::string::npos) fail("has a string without an end");
    std::string result = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return result;
  }

  bool boolean() {
    skip_spaces();
    for (const bool value : {false, true}) {
      const std::string word = value ? "True" : "False";
      if (text_.compare(at_, word.size(), word) == 0) {
        at_ += word.size();
        return value;
      }
    }
    fail("needs True or False for fortran_order");
  }

  Shape tuple() {
    Shape shape;
    expect('(');
    while (!next(')')) {
      shape.push_back(whole_number());
      if (shape.size() > 32) fail("has a shape of more than 32 dimensions");
      if (!next(',')) {
        expect(')');
        break;
      }
    }
    return shape;
  }

  std::uint64_t whole_number() {
    skip_spaces();
    const std::size_t first = at_;
    std::uint64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const auto digit = static_cast<std::uint64_t>(text_[at_] - '0');
      if (value > ((std::uint64_t{1} << 63) - 1 - digit) / 10) {
        fail("has a size in shape that leaves 63 bits");
      }
      value = 10 * value + digit;
    }
    if (at_ == first) fail("needs whole numbers from 0 in shape");
    return value;
  }

  const std::string& file_;
  std::string text_;
  std::size_t at_ = 0;
  std::optional<std::string> descr_;
  std::optional<bool> fortran_order_;
  std::optional<Shape> shape_;
};

/// The scalar that a descr names, behind its byte order. Two bytes without a type are bfloat16: so
/// ml_dtypes stores it.
inline Scalar scalar_of(const std::string& file, const std::string& descr) {
  if (descr == "<f4" || descr == ">f4") return Scalar::float32;
  if (descr == "<f2" || descr == ">f2") return Scalar::float16;
  if (descr == "<f8" || descr == ">f8") return Scalar::float64;
  if (descr == "|V2" || descr == "<V2") return Scalar::bfloat16;
  refuse(file, "descr",
         "need f4, f2 or f8 behind < or >, or, for bfloat16, |V2 (got " + shown(descr) + ")");
}

}  // namespace detail

/// Where the array of a .npy file lies; all that its header says has been checked against the
/// file's size. Of arrays in Fortran's order, it takes matrices.
inline Tensor read_npy_header(const Source& source) {
  const std::string& file = source.name();
  const std::string start = source.read(0, 8);
  if (start.compare(0, 6, "\x93NUMPY") != 0) {
    refuse(file, "magic", "the first six bytes are not those of a .npy file");
  }
  const int version = static_cast<unsigned char>(start[6]);
  if (version < 1 || version > 3 || start[7] != 0) {
    refuse(file, "version",
           "need 1.0, 2.0 or 3.0 (got " + std::to_string(version) + "." +
               std::to_string(static_cast<unsigned char>(start[7])) + ")");
  }
  const std::uint64_t length_bytes = version == 1 ? 2 : 4;
  std::uint64_t length = 0;
  const std::string digits = source.read(8, length_bytes);
  for (std::uint64_t b = length_bytes; b-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(digits[b]);
  }
  constexpr std::uint64_t longest = 10000;  // NumPy's own limit
  if (length > longest) {
    refuse(file, "header length", "need at most 10000 bytes (got " + std::to_string(length) + ")");
  }
  detail::NpyDictionary dictionary(file, source.read(8 + length_bytes, length));
  dictionary.read();
  if (dictionary.fortran_order() && dictionary.shape().size() > 2) {
    refuse(file, "fortran_order",
           "need False for more than a matrix: store numpy.ascontiguousarray(array)");
  }

  Tensor tensor;
  tensor.name = std::filesystem::path(file).stem().string();
  tensor.scalar = detail::scalar_of(file, dictionary.descr());
  tensor.shape = dictionary.shape();
  tensor.big_endian = dictionary.descr()[0] == '>';
  tensor.column_major = dictionary.fortran_order();
  tensor.offset = 8 + length_bytes + length;
  const std::uint64_t wanted = checked_bytes(file, "shape", tensor.shape, bytes_of(tensor.scalar));
  const std::uint64_t there = source.size() - tensor.offset;
  if (wanted != there) {
    refuse(file, "shape",
           text_of(tensor.shape) + " needs " + std::to_string(wanted) +
               " bytes behind the header, but there are " + std::to_string(there));
  }
  return tensor;
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_NPY_HPP
