// SPDX-License-Identifier: MIT
// JSON as a stream of values, from files that may be hostile: depth is bounded, a key may stand
// once, and no tree is built.
#ifndef INSPECT_ROUTER_JSON_READER_HPP
#define INSPECT_ROUTER_JSON_READER_HPP

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"

namespace inspect_router {

/// A value that is neither an object nor an array.
struct JsonValue {
  enum class Kind { null, boolean, whole, negative, real, text };
  Kind kind = Kind::null;
  std::uint64_t whole = 0;  ///< The size of a whole number.
  double real = 0;          ///< Any number.
  std::string text;
};

/// Derived classes take the values in the order of the text.
class JsonReader {
 public:
  /// `where`: the part of the file, for messages; may be empty. The outermost value has depth 1.
  JsonReader(std::string file, std::string where, std::size_t deepest)
      : file_(std::move(file)), where_(std::move(where)), deepest_(deepest) {}
  JsonReader(const JsonReader&) = delete;
  JsonReader& operator=(const JsonReader&) = delete;
  virtual ~JsonReader() = default;

  /// Reads one JSON text, which must be an object.
  void parse(const std::string& text) {
    Events events{this};
    if (!nlohmann::json::sax_parse(text, &events)) fail("is not JSON");
  }

 protected:
  /// A value: of the key path().back() in an object, or an element of the array at that path.
  virtual void value(const JsonValue& value) = 0;
  /// An object or an array begins or ends; path() is that of its key.
  virtual void begin(bool /*is_array*/) {}
  virtual void end(bool /*is_array*/) {}

  /// The keys from the outermost object inwards; an array adds none.
  const std::vector<std::string>& path() const { return path_; }
  std::size_t depth() const { return levels_.size(); }
  bool in_array() const { return !levels_.empty() && levels_.back().is_array; }
  const std::string& file() const { return file_; }

  [[noreturn]] void fail(const std::string& rule) const {
    std::string field = where_;
    for (const std::string& key : path_) field += (field.empty() ? "" : " ") + shown(key);
    refuse(file_, field.empty() ? "JSON" : field, rule);
  }

  /// The value as a whole number from 0 up to `largest`.
  std::uint64_t whole(const JsonValue& value, std::uint64_t largest) const {
    if (value.kind != JsonValue::Kind::whole || value.whole > largest) {
      fail("need a whole number from 0 to " + std::to_string(largest));
    }
    return value.whole;
  }
  const std::string& text(const JsonValue& value) const {
    if (value.kind != JsonValue::Kind::text) fail("need a string");
    return value.text;
  }

 private:
  struct Level {
    bool is_array = false;
    bool has_key = false;
    std::set<std::string> keys;
  };

  void open(bool is_array) {
    if (levels_.empty() && is_array) fail("need an object");
    if (levels_.size() == deepest_) {
      fail("is nested deeper than " + std::to_string(deepest_) + " levels");
    }
    begin(is_array);
    levels_.push_back({is_array, false, {}});
  }
  void close() {
    const bool is_array = levels_.back().is_array;
    if (levels_.back().has_key) path_.pop_back();
    levels_.pop_back();
    end(is_array);
  }
  void key(const std::string& name) {
    Level& level = levels_.back();
    if (level.has_key) path_.pop_back();
    level.has_key = true;
    path_.push_back(name);
    if (!level.keys.insert(name).second) fail("stands twice");
  }
  void scalar(const JsonValue& element) {
    if (levels_.empty()) fail("need an object");
    value(element);
  }

  /// What nlohmann's parser calls.
  struct Events {
    JsonReader* reader;

    bool null() { return give({}); }
    bool boolean(bool b) { return give({JsonValue::Kind::boolean, b ? 1U : 0U, 0, ""}); }
    bool number_integer(std::int64_t n) {
      return give({JsonValue::Kind::negative, ~static_cast<std::uint64_t>(n) + 1,
                   static_cast<double>(n), ""});
    }
    bool number_unsigned(std::uint64_t n) {
      return give({JsonValue::Kind::whole, n, static_cast<double>(n), ""});
    }
    bool number_float(double x, const std::string&) {
      return give({JsonValue::Kind::real, 0, x, ""});
    }
    bool string(std::string& text) { return give({JsonValue::Kind::text, 0, 0, text}); }
    bool binary(std::vector<std::uint8_t>&) { return false; }
    bool start_object(std::size_t) {
      reader->open(false);
      return true;
    }
    bool start_array(std::size_t) {
      reader->open(true);
      return true;
    }
    bool end_object() {
      reader->close();
      return true;
    }
    bool end_array() { return end_object(); }
    bool key(std::string& name) {
      reader->key(name);
      return true;
    }
    bool parse_error(std::size_t position, const std::string&, const std::exception& error) {
      // nlohmann's message begins with a number in brackets that tells users nothing.
      std::string why = error.what();
      const std::size_t bracket = why.find("] ");
      if (bracket != std::string::npos) why.erase(0, bracket + 2);
      reader->fail("is not JSON at byte " + std::to_string(position) + " (" +
                   shown(why).substr(1, 121) + ")");
    }

    bool give(const JsonValue& element) {
      reader->scalar(element);
      return true;
    }
  };

  std::string file_, where_;
  std::size_t deepest_;
  std::vector<Level> levels_;
  std::vector<std::string> path_;
};

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_JSON_READER_HPP
