// SPDX-License-Identifier: MIT
// One self-contained HTML page: no script, no other file; light or dark as the reader's system is.
#ifndef EXAMPLES_SUPPORT_PAGE_HPP
#define EXAMPLES_SUPPORT_PAGE_HPP

#include <string>
#include <utility>
#include <vector>

#include "svg.hpp"
#include "theme.hpp"

namespace report {

inline std::string page_colour_css(const Theme& t) {
  const std::string ink = t.ink, muted = t.muted, grid = t.grid, card = t.card, paper = t.paper;
  return "body{--under:" + paper + ";--edge:" + muted + "66;background:" + paper + ";color:" + ink +
         "}a{color:" + t.accent + "}.card{--under:" + card + ";background:" + card +
         ";border-color:" + grid + "}figcaption,.lead,.unit{color:" + muted +
         "}th,td{border-color:" + grid + "}th{color:" + muted + "}\n" + colour_css(t);
}

/// What is wider than the page scrolls sideways in its box. There the first column stays, and a
/// shade at the right edge says that there is more: what scrolls along covers it at the end.
inline std::string scroll_css() {
  return ".scroll{margin:14px 0;overflow-x:auto;background:"
         "linear-gradient(to left,var(--under) 30%,transparent) right/40px 100% no-repeat local,"
         "linear-gradient(to left,var(--edge),transparent) right/16px 100% no-repeat scroll}"
         ".scroll th:first-child,.scroll td:first-child{position:sticky;left:0;"
         "background:var(--under)}\n";
}

inline std::string page_css() {
  return "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}"
         "body{margin:0;font:16px/1.5 system-ui,-apple-system,'Segoe UI','Noto Sans','DejaVu Sans',"
         "sans-serif}main{max-width:1240px;margin:0 auto;padding:20px 16px 60px}"
         "h1{font-size:1.7rem;line-height:1.2;margin:.4em 0 .2em}"
         "h2{font-size:1.25rem;margin:2.2em 0 .3em}p{max-width:46rem;margin:.5em 0}"
         ".lead{font-size:1.02rem}h1,h2,p,code{overflow-wrap:anywhere}"
         "code{font:.9em ui-monospace,'DejaVu Sans Mono',monospace}"
         ".grid-of-cards{display:grid;gap:16px;margin:14px 0;grid-template-columns:"
         "repeat(auto-fill,minmax(min(100%,372px),1fr));align-items:start}"
         ".card{border:1px solid;border-radius:8px;margin:0;padding:12px;min-width:0}"
         ".card h3{font-size:1rem;margin:0 0 6px}.figure{display:block;width:100%;height:auto}"
         "figcaption{font-size:.88rem;line-height:1.45;margin-top:8px}"
         ".tiles{display:grid;gap:10px;margin:14px 0;grid-template-columns:"
         "repeat(auto-fill,minmax(min(46%,148px),1fr))}.tile{padding:10px 12px}"
         ".tile "
         "b{display:block;font-size:1.3rem;line-height:1.25;font-variant-numeric:tabular-nums}"
         ".unit{font-size:.8rem;line-height:1.3;display:block}"
         "table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}"
         "th,td{border-bottom:1px solid;padding:5px 10px;text-align:right;vertical-align:top}"
         "th{font-weight:600;line-height:1.25;vertical-align:bottom}td{white-space:nowrap}"
         "th.words,td.words{text-align:left}th.long{min-width:6em}.dense "
         "th.long{min-width:0}td.long{white-space:normal;min-"
         "width:15em}"
         "td code{font:inherit}.dense{font-size:.8rem}.dense th,.dense td{padding:3px 4px}"
         ".stack{display:grid;gap:16px}"
         ".fold{margin:14px 0;padding:0}.fold .scroll{margin:0}"
         "summary{cursor:pointer;font-weight:600;padding:8px 12px}"
         ".contents{columns:17em;column-gap:24px;font-size:.9rem;list-style:none;margin:0;"
         "padding:0 12px 10px}.contents li{break-inside:avoid;padding:2px 0}"
         "@media(min-width:820px){.wide{grid-column:span 2}.wide .figure{font-size:6.6px}"
         "}@media(max-width:480px){th,td{padding:5px 6px}td.words:first-child{white-space:normal}"
         "td.long:first-child{min-width:8em}}\n" +
         scroll_css() + shape_css();
}

/// Builds the page from the top down.
class Page {
 public:
  explicit Page(const std::string& title) : title_(title) {
    body_ = "<h1>" + escaped(title) + "</h1>\n";
  }

  /// A folded list of links to sections: their ids, and what they are called.
  void contents(const std::vector<std::pair<std::string, std::string>>& sections) {
    begin_details("Contents");
    body_ += "<nav><ul class=\"contents\">\n";
    for (const auto& [id, name] : sections) body_ += "<li>" + link("#" + id, name) + "</li>\n";
    body_ += "</ul></nav>\n";
    end_details();
  }
  void section(const std::string& heading, const std::string& id) {
    body_ += "<h2 id=\"" + escaped(id) + "\">" + escaped(heading) + "</h2>\n";
  }
  void lead(const std::string& text) { body_ += "<p class=\"lead\">" + escaped(text) + "</p>\n"; }
  void paragraph(const std::string& text) { body_ += "<p>" + escaped(text) + "</p>\n"; }
  /// Markup that is well-formed already.
  void raw(const std::string& markup) { body_ += markup; }
  /// More rules for the style sheet, in the light and in the dark scheme.
  void add_css(const std::string& light, const std::string& dark) {
    light_css_ += light;
    dark_css_ += dark;
  }

  /// Figures stand side by side between these two, as many as there is room for.
  void begin_cards() { body_ += "<div class=\"grid-of-cards\">\n"; }
  void end_cards() { body_ += "</div>\n"; }
  enum class Width { one, wide };
  /// Cards below each other in one place of the grid.
  void begin_stack(Width width = Width::one) {
    body_ += std::string("<div class=\"stack") + css_class(width) + "\">\n";
  }
  void end_stack() { body_ += "</div>\n"; }
  /// A line that opens and closes what follows it, up to end_details; closed at first.
  void begin_details(const std::string& summary) {
    body_ += "<details class=\"card fold\">\n<summary>" + escaped(summary) + "</summary>\n";
  }
  void end_details() { body_ += "</details>\n"; }
  /// A card with a heading; what follows, up to end_card, stands in it.
  void begin_card(const std::string& heading) {
    body_ += "<div class=\"card\">\n<h3>" + escaped(heading) + "</h3>\n";
  }
  void end_card() { body_ += "</div>\n"; }

  /// A drawing, what it is called, and what one sees.
  void figure(const std::string& heading, const Svg& drawing, const std::string& caption,
              Width width = Width::one) {
    body_ += std::string("<figure class=\"card") + css_class(width) + "\">\n<h3>" +
             escaped(heading) + "</h3>\n" + drawing.inline_text() + "<figcaption>" +
             escaped(caption) + "</figcaption>\n</figure>\n";
  }

  /// Numbers that are read first: the number, and what it counts.
  void tiles(const std::vector<std::pair<std::string, std::string>>& values) {
    body_ += "<div class=\"tiles\">\n";
    for (const auto& [value, unit] : values) {
      body_ += "<div class=\"card tile\"><b>" + escaped(value) + "</b><span class=\"unit\">" +
               escaped(unit) + "</span></div>\n";
    }
    body_ += "</div>\n";
  }

  /// A column is right-aligned, for numbers, unless its name starts with a '|'. A cell that starts
  /// with '#' links to the section of that id: "#id|text".
  void table(const std::vector<std::string>& columns,
             const std::vector<std::vector<std::string>>& rows) {
    std::vector<bool> words;
    body_ += "<div class=\"scroll\" tabindex=\"0\"><table";
    body_ += columns.size() > 10 ? " class=\"dense\">\n<thead><tr>" : ">\n<thead><tr>";
    for (const std::string& column : columns) {
      words.push_back(!column.empty() && column[0] == '|');
      body_ += cell("th", words.back() ? column.substr(1) : column, words.back());
    }
    body_ += "</tr></thead>\n<tbody>\n";
    for (const auto& row : rows) {
      body_ += "<tr>";
      for (std::size_t c = 0; c < row.size(); ++c) body_ += cell("td", row[c], words[c]);
      body_ += "</tr>\n";
    }
    body_ += "</tbody></table></div>\n";
  }

  /// The file.
  std::string html() const {
    return "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n"
           "<meta charset=\"utf-8\" />\n<meta name=\"viewport\" content=\"width=device-width, "
           "initial-scale=1\" />\n<meta name=\"color-scheme\" content=\"light dark\" />\n<title>" +
           escaped(title_) + "</title>\n<style>\n" + page_css() + page_colour_css(light_theme) +
           light_css_ + "@media(prefers-color-scheme:dark){\n" + page_colour_css(dark_theme) +
           dark_css_ + "}\n</style>\n</head>\n<body>\n<main>\n" + body_ +
           "</main>\n</body>\n</html>\n";
  }

 private:
  static const char* css_class(Width width) { return width == Width::one ? "" : " wide"; }

  static std::string link(const std::string& address, const std::string& text) {
    return "<a href=\"" + escaped(address) + "\">" + escaped(text) + "</a>";
  }

  /// Long cells break into lines: sentences, but neither numbers nor names, and names of columns.
  static std::string cell(const std::string& tag, const std::string& text, bool words) {
    const std::size_t bar = text.find('|');
    const bool links = !text.empty() && text[0] == '#' && bar != std::string::npos;
    const std::string shown = links ? text.substr(bar + 1) : text;
    const std::size_t longest = tag == "th" ? 8 : words ? 27 : 40;  // bytes
    const bool breaks = shown.size() > longest;
    const char* css = words && breaks ? " class=\"words long\""
                      : words         ? " class=\"words\""
                      : breaks        ? " class=\"long\""
                                      : "";
    return "<" + tag + css + ">" + (links ? link(text.substr(0, bar), shown) : escaped(shown)) +
           "</" + tag + ">";
  }

  std::string title_;
  std::string body_;
  std::string light_css_, dark_css_;
};

}  // namespace report

#endif  // EXAMPLES_SUPPORT_PAGE_HPP
