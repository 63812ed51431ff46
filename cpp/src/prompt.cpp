// The half of sequence.hpp that reads instructions.
#include <algorithm>
#include <string_view>

#include "error.hpp"
#include "sequence.hpp"
#include "unicode.hpp"

namespace ev {

namespace {

bool is_digit(char32_t code) { return code >= U'0' && code <= U'9'; }

/// The length of an input's name ("video1") at the head of text, or 0.
std::size_t match_name(std::string_view text) {
  if (text.substr(0, 5) != "video" && text.substr(0, 5) != "image") return 0;
  std::size_t end = 5;
  if (end >= text.size() || text[end] < '1' || text[end] > '9') return 0;
  while (end < text.size() && is_digit(static_cast<unsigned char>(text[end]))) ++end;
  return end;
}

/// The end of something like a tag that begins at characters[i], or i: <\s*/?\s*(video|image)s?[\s_-]*[0-9]*\s*/?\s*>?
/// with case ignored. Every part after the word may be absent, so taking as much as possible at each is right.
std::size_t match_tag_like(const std::vector<Character>& characters, std::size_t i) {
  std::size_t at = i;
  const auto code = [&] { return at < characters.size() ? characters[at].code : U'\0'; };
  const auto skip_spaces = [&] {
    while (is_space(code())) ++at;
  };
  const auto skip_one = [&](char32_t wanted) { at += fold_case(code()) == wanted ? 1 : 0; };
  const auto skip_word = [&](std::u32string_view word) {
    for (std::size_t k = 0; k < word.size(); ++k) {
      if (at + k >= characters.size() || fold_case(characters[at + k].code) != word[k]) return false;
    }
    at += word.size();
    return true;
  };
  if (code() != U'<') return i;
  ++at;
  skip_spaces();
  skip_one(U'/');
  skip_spaces();
  if (!skip_word(U"video") && !skip_word(U"image")) return i;
  skip_one(U's');
  while (is_space(code()) || code() == U'_' || code() == U'-') ++at;
  while (is_digit(code())) ++at;
  skip_spaces();
  skip_one(U'/');
  skip_spaces();
  skip_one(U'>');
  return at;
}

/// The first thing in text that looks like a tag, or nothing.
std::optional<std::string> find_tag_like(const std::string& text, const std::vector<Character>& characters) {
  const auto offset = [&](std::size_t i) { return i < characters.size() ? characters[i].offset : text.size(); };
  for (std::size_t i = 0; i < characters.size(); ++i) {
    const std::size_t end = match_tag_like(characters, i);
    if (end > i) return text.substr(offset(i), offset(end) - offset(i));
  }
  return std::nullopt;
}

std::string strip(const std::string& text, const std::vector<Character>& characters) {
  const auto solid = [](const Character& character) { return !is_space(character.code); };
  const auto first = std::find_if(characters.begin(), characters.end(), solid);
  if (first == characters.end()) return "";
  const auto past = std::find_if(characters.rbegin(), characters.rend(), solid).base();
  const std::size_t end = past == characters.end() ? text.size() : past->offset;
  return text.substr(first->offset, end - first->offset);
}

void add_text(const std::string& part, std::vector<Segment>& segments) {
  const auto characters = decode_utf8(part);
  if (!characters) {
    throw Error(EV_ERROR_REQUEST, "request.prompt").found("the instruction is not UTF-8").hint("convert it");
  }
  if (const auto like = find_tag_like(part, *characters)) {
    throw Error(EV_ERROR_REQUEST, "request.tag")
        .found("the instruction has \"", *like, "\", which is not a tag")
        .hint("tags look like <video1>, <video2>, <image1>; correct it");
  }
  std::string text = strip(part, *characters);
  if (!text.empty()) segments.emplace_back(TextSegment{std::move(text)});
}

bool mentions(const std::vector<Segment>& segments, const std::string& name) {
  return std::any_of(segments.begin(), segments.end(), [&](const Segment& segment) {
    const auto* vision = std::get_if<VisionSegment>(&segment);
    return vision != nullptr && vision->name == name;
  });
}

}  // namespace

void check_input_name(const std::string& name) {
  if (name.empty() || match_name(name) != name.size()) {
    throw Error(EV_ERROR_REQUEST, "request.input_name")
        .found("an input is called \"", name, "\"")
        .hint("inputs are video1, video2, image1 ...; rename it");
  }
}

std::string input_kind(const std::string& name) { return name.substr(0, 5); }

std::string with_tags(const std::string& prompt, const std::vector<std::string>& input_names) {
  const auto characters = decode_utf8(prompt);
  if (!characters || find_tag_like(prompt, *characters)) return prompt;
  std::string tagged;
  for (const std::string& name : input_names) tagged += "<" + name + "> ";
  return tagged + prompt;
}

std::vector<Segment> parse_prompt(const std::string& prompt, const std::vector<std::string>& input_names) {
  for (const std::string& name : input_names) check_input_name(name);
  std::vector<Segment> segments;
  const std::string_view whole = prompt;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    const std::size_t length = whole[at] == '<' ? match_name(whole.substr(at + 1)) : 0;
    if (length == 0 || at + 1 + length >= whole.size() || whole[at + 1 + length] != '>') continue;
    add_text(prompt.substr(begin, at - begin), segments);
    const std::string name = prompt.substr(at + 1, length);
    if (std::find(input_names.begin(), input_names.end(), name) == input_names.end()) {
      throw Error(EV_ERROR_REQUEST, "request.tag")
          .found("the instruction mentions <", name, ">, but no ", name, " is given")
          .hint("add it or remove the tag");
    }
    if (mentions(segments, name)) {
      throw Error(EV_ERROR_REQUEST, "request.tag")
          .found("the instruction mentions <", name, "> twice")
          .hint(
              "a tag stands once, where the input belongs in the sequence; call it \"the video\" or \"the image\" "
              "elsewhere");
    }
    segments.emplace_back(VisionSegment{name});
    begin = at + length + 2;
    at = begin - 1;
  }
  add_text(prompt.substr(begin), segments);
  const bool has_words = std::any_of(segments.begin(), segments.end(), [](const Segment& segment) {
    return std::holds_alternative<TextSegment>(segment);
  });
  if (!has_words) {
    throw Error(EV_ERROR_REQUEST, "request.prompt")
        .found("the instruction is empty")
        .hint("say what to make or what to change");
  }
  for (const std::string& name : input_names) {
    if (!mentions(segments, name)) {
      throw Error(EV_ERROR_REQUEST, "request.tag")
          .found(name, " is given, but the instruction does not mention <", name, ">")
          .hint("put the tag in it");
    }
  }
  return segments;
}

}  // namespace ev
