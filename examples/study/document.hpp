// SPDX-License-Identifier: MIT
// A report as blocks, written as a page or as Markdown.
#ifndef STUDY_DOCUMENT_HPP
#define STUDY_DOCUMENT_HPP

#include <algorithm>
#include <cctype>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "support/page.hpp"

namespace study {

struct Heading {
  std::string text, id;
};
struct Paragraph {
  std::string text;  // `code` between backticks
};
struct Bullets {
  std::vector<std::string> items;
};
/// A column is right-aligned, for numbers, unless its name starts with a '|'. A cell "#id|text"
/// links to the heading of that id.
struct Grid {
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
};
struct Code {
  std::string text;
};
/// A table that is folded until it is asked for.
struct Details {
  std::string summary;
  Grid table;
};
struct Figure {
  std::string heading;
  report::Svg drawing;
  std::string caption;
  std::string file;  // in Markdown; if empty, only the page shows it
};
/// Figures side by side.
struct Figures {
  std::vector<Figure> all;
};

using Block = std::variant<Heading, Paragraph, Bullets, Grid, Code, Details, Figures>;

struct Document {
  std::string title;
  std::vector<Block> blocks;

  template <class B>
  void add(B block) {
    blocks.emplace_back(std::move(block));
  }
};

namespace detail {

/// Text with `code` and **strong** as markup.
inline std::string inline_html(const std::string& text) {
  std::string html;
  bool code = false, strong = false;
  std::size_t from = 0;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const bool tick = text[at] == '`';
    if (!tick && (code || text.compare(at, 2, "**") != 0)) continue;
    html += report::escaped(text.substr(from, at - from));
    if (tick) {
      html += (code = !code) ? "<code>" : "</code>";
    } else {
      html += (strong = !strong) ? "<strong>" : "</strong>";
      ++at;
    }
    from = at + 1;
  }
  return html + report::escaped(text.substr(from));
}

/// The same without marks, for cells of the page's tables.
inline std::string plain(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), '`'), text.end());
  return text;
}

class HtmlWriter {
 public:
  explicit HtmlWriter(const Document& document) : page_(document.title) {
    std::vector<std::pair<std::string, std::string>> sections;
    for (const Block& block : document.blocks) {
      const Heading* heading = std::get_if<Heading>(&block);
      if (heading != nullptr) sections.emplace_back(heading->id, heading->text);
    }
    page_.contents(sections);
  }

  void operator()(const Heading& heading) { page_.section(heading.text, heading.id); }
  void operator()(const Paragraph& p) { page_.raw("<p>" + inline_html(p.text) + "</p>\n"); }
  void operator()(const Bullets& bullets) {
    std::string html = "<ul>\n";
    for (const std::string& item : bullets.items)
      html += "<li><p>" + inline_html(item) + "</p></li>\n";
    page_.raw(html + "</ul>\n");
  }
  void operator()(Grid grid) {
    for (auto& row : grid.rows) std::transform(row.begin(), row.end(), row.begin(), plain);
    page_.table(grid.columns, grid.rows);
  }
  void operator()(const Code& code) {
    std::string html;
    std::istringstream lines(code.text);
    for (std::string line; std::getline(lines, line);) html += report::escaped(line) + "\n";
    page_.raw("<div class=\"scroll\"><pre><code>" + html + "</code></pre></div>\n");
  }
  void operator()(const Details& details) {
    page_.begin_details(details.summary);
    (*this)(details.table);
    page_.end_details();
  }
  void operator()(const Figures& figures) {
    page_.begin_cards();
    for (const Figure& f : figures.all) page_.figure(f.heading, f.drawing, f.caption);
    page_.end_cards();
  }
  std::string html() const { return page_.html(); }

 private:
  report::Page page_;
};

/// The anchor that Markdown's readers make of a heading.
inline std::string anchor_of(const std::string& heading) {
  std::string anchor;
  for (const char c : heading) {
    const auto letter = static_cast<unsigned char>(c);
    if (c == ' ' || c == '-') anchor += '-';
    if (std::isalnum(letter) != 0) anchor += static_cast<char>(std::tolower(letter));
  }
  return anchor;
}

class MarkdownWriter {
 public:
  explicit MarkdownWriter(const Document& document) : text_("# " + document.title + "\n") {
    for (const Block& block : document.blocks) {
      const Heading* heading = std::get_if<Heading>(&block);
      if (heading != nullptr) anchors_["#" + heading->id] = anchor_of(heading->text);
    }
  }

  void operator()(const Heading& heading) { text_ += "\n## " + heading.text + "\n"; }
  void operator()(const Paragraph& p) { text_ += "\n" + p.text + "\n"; }
  void operator()(const Bullets& bullets) {
    text_ += "\n";
    for (const std::string& item : bullets.items) text_ += "* " + item + "\n";
  }
  void operator()(const Grid& grid) {
    std::string names, rule;
    for (const std::string& column : grid.columns) {
      const bool words = !column.empty() && column[0] == '|';
      names += " " + (words ? column.substr(1) : column) + " |";
      rule += words ? "---|" : "---:|";
    }
    text_ += "\n|" + names + "\n|" + rule + "\n";
    for (const auto& row : grid.rows) {
      text_ += "|";
      for (const std::string& cell : row) text_ += " " + linked(cell) + " |";
      text_ += "\n";
    }
  }
  void operator()(const Code& code) { text_ += "\n```sh\n" + code.text + "\n```\n"; }
  void operator()(const Details& details) {
    text_ += "\n<details><summary>" + details.summary + "</summary>\n";
    (*this)(details.table);
    text_ += "\n</details>\n";
  }
  void operator()(const Figures& figures) {
    std::string caption;  // figures that have the same one stand below it
    for (const Figure& f : figures.all) {
      if (f.file.empty()) continue;
      if (f.caption != caption) text_ += "\n" + (caption = f.caption) + "\n";
      text_ += "\n**" + f.heading + "**\n\n![" + f.heading + "](study/" + f.file + ")\n";
    }
  }
  const std::string& markdown() const { return text_; }

 private:
  std::string linked(const std::string& cell) const {
    const std::size_t bar = cell.find('|');
    if (cell.empty() || cell[0] != '#' || bar == std::string::npos) return cell;
    return "[" + cell.substr(bar + 1) + "](#" + anchors_.at(cell.substr(0, bar)) + ")";
  }

  std::string text_;
  std::map<std::string, std::string> anchors_;  // of headings, by "#id"
};

template <class Writer>
Writer written(const Document& document) {
  Writer writer(document);
  for (const Block& block : document.blocks) std::visit(writer, block);
  return writer;
}

}  // namespace detail

inline std::string html_of(const Document& document) {
  return detail::written<detail::HtmlWriter>(document).html();
}
inline std::string markdown_of(const Document& document) {
  return detail::written<detail::MarkdownWriter>(document).markdown();
}

}  // namespace study

#endif  // STUDY_DOCUMENT_HPP
