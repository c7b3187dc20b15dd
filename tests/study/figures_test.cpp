// SPDX-License-Identifier: MIT
// What the report draws, and how its tables and folds are marked up.
#include "figures.hpp"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "document.hpp"
#include "forest.hpp"

namespace study {
namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t times = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
    ++times;
  return times;
}

TEST(CurveFigures, ShowUnusedExpertsAsPercentages) {
  EXPECT_EQ(experts_of("tiny"), 64);
  EXPECT_EQ(experts_of("e128"), 128);
  EXPECT_EQ(experts_of("e16-k2"), 16);
  Table curves{cells_of("model,arm,step,seeds,unused,unused_sd,coactivation,coactivation_sd"), {}};
  curves.rows = {cells_of("tiny,off,10,5,32,48,0.5,0.1"), cells_of("e128,off,10,5,32,16,0.5,0.1")};
  const Curve tiny = curve_of(curves, "tiny", "off", unused_quantity);
  const Curve wide = curve_of(curves, "e128", "off", unused_quantity);
  const Curve pairs = curve_of(curves, "e128", "off", coactivation_quantity);
  EXPECT_EQ(tiny.mean, (report::Points{{10, 50}}));
  EXPECT_EQ(tiny.low, (report::Points{{10, 0}})) << "no share is below 0";
  EXPECT_EQ(wide.mean, (report::Points{{10, 25}}));
  EXPECT_EQ(wide.high, (report::Points{{10, 37.5}}));
  EXPECT_EQ(pairs.mean, (report::Points{{10, 0.5}}));
}

TEST(DoseFigures, NameEliminationAndTheQuantity) {
  Runs runs;
  for (const char* arm : {"off", "published", "eliminate"}) {
    for (std::int64_t seed = 1; seed <= 5; ++seed) {
      RunSummary run;
      run.key = {"tiny", arm, seed};
      run[Metric::unused] = arm[0] == 'e' ? 0.01 * static_cast<double>(seed) : 0.5;
      runs[run.key] = run;
    }
  }
  const std::vector<Figure> figures =
      dose_figure(runs, Metric::unused, 100, "Change", "experts, points", "file.svg");
  ASSERT_EQ(figures.size(), 1U);
  const std::string svg = figures[0].drawing.inline_text();
  EXPECT_NE(svg.find("<title>eliminate: −47.0</title>"), std::string::npos) << svg;
  EXPECT_NE(svg.find("<title>lambda 0.0001: 0</title>"), std::string::npos) << svg;
  EXPECT_NE(svg.find(">experts, points</text>"), std::string::npos);
  EXPECT_EQ(figures[0].heading, "Change over lambda, tiny");
}

TEST(Forest, MarksEachVerdictByMoreThanColour) {
  for (const Verdict a : verdicts) {
    for (const Verdict b : verdicts) {
      if (a == b) continue;
      const Mark left = mark_of(a), right = mark_of(b);
      EXPECT_NE(std::tie(left.shape, left.pale), std::tie(right.shape, right.pale))
          << verdict_name(a) << " and " << verdict_name(b);
    }
  }
}

TEST(Forest, ExplainsTheVerdictsThatOccurAndKeepsLinesOffLabels) {
  Estimate e;
  e.n = 5;
  e.mean = 1, e.low = 0.5, e.high = 1.5;
  const std::string svg =
      forest("title", {{"an arm", e, Verdict::holds}, {"other", e, Verdict::opposite}}, -2, "units")
          .inline_text();
  EXPECT_EQ(count(svg, ">holds</text>"), 1U);
  EXPECT_EQ(count(svg, ">the opposite</text>"), 1U);
  EXPECT_EQ(count(svg, ">not shown</text>"), 0U);
  EXPECT_EQ(count(svg, "<title>an arm: 1.00, holds</title>"), 1U) << svg;
  for (const char* css : {"grid", "frame", "rule"}) {
    const std::string name = std::string("class=\"") + css;
    EXPECT_GT(count(svg, name), 0U) << css;
    EXPECT_EQ(count(svg, name), count(svg, name + " lanes\"")) << css;
  }
}

TEST(Pages, KeepNumbersOnOneLineAndBreakSentences) {
  report::Page page("p");
  const std::string sentence = "not shown; a sentence that is too long for a line";
  page.table({"|name", "value"},
             {{"#id|a name", "−0.0010 [−0.0050 to −0.0029]"}, {sentence, sentence}});
  page.table(std::vector<std::string>(11, "n"), {});
  const std::string html = page.html();
  EXPECT_NE(html.find("<td class=\"words\"><a href=\"#id\">a name</a></td><td>−0.0010 [−0.0050 to "
                      "−0.0029]</td>"),
            std::string::npos);
  EXPECT_NE(html.find("<td class=\"words long\">" + sentence + "</td><td class=\"long\">"),
            std::string::npos);
  EXPECT_NE(html.find("td{white-space:nowrap}"), std::string::npos);
  EXPECT_EQ(count(html, "<div class=\"scroll\" tabindex=\"0\"><table>"), 1U);
  EXPECT_EQ(count(html, "<div class=\"scroll\" tabindex=\"0\"><table class=\"dense\">"), 1U);
}

TEST(Pages, FoldTablesAndListTheSections) {
  Document document;
  document.title = "d";
  document.add(Heading{"One & two", "one"});
  document.add(Details{"All <1> rows", Grid{{"|a"}, {{"b"}}}});
  const std::string html = html_of(document);
  EXPECT_NE(html.find("<li><a href=\"#one\">One &amp; two</a></li>"), std::string::npos) << html;
  EXPECT_NE(html.find("<summary>All &lt;1&gt; rows</summary>\n<div class=\"scroll\""),
            std::string::npos);
  EXPECT_EQ(count(html, "<details"), count(html, "</details>"));
}

TEST(Markdown, HasTheCaptionOfSeveralFiguresOnce) {
  const report::Svg drawing(1, 1, "t");
  Document document;
  document.add(Figures{{{"A", drawing, "same", "a.svg"},
                        {"B", drawing, "same", "b.svg"},
                        {"page only", drawing, "same", ""},
                        {"C", drawing, "other", "c.svg"}}});
  EXPECT_EQ(markdown_of(document),
            "# \n\nsame\n\n**A**\n\n![A](study/a.svg)\n\n**B**\n\n![B](study/b.svg)\n"
            "\nother\n\n**C**\n\n![C](study/c.svg)\n");
}

}  // namespace
}  // namespace study
