package document

import (
	"html"
	"regexp"
	"strconv"
	"strings"
)

// Page is a report for browsers: one file that loads nothing and runs nothing.
type Page struct {
	Title string
	// Verdict is how all of it came out, in a line.
	Verdict string
	// Lead are paragraphs before all parts, behind the summary, and Marks what of the whole is to
	// be read with care.
	Lead, Marks []string
	// Terms are words of the page, each with what it means.
	Terms [][2]string
	// Style is the style sheet of the pictures, as their maker has it.
	Style string
	Parts []Part
}

// Part is a section of a page. What is empty is left out.
type Part struct {
	Title string
	// Verdict is how the part came out, in some words, and Why what was wrong with it. Parts
	// that have a verdict are in the summary at the top.
	Verdict string
	Why     []string
	Text    []string
	// Marks say why the part is to be read with care, Notes what else is to be known.
	Marks, Notes []string
	// Table has a row of headings first, and the first cell of each row is its heading. Cells
	// with the text Marked stand out.
	Table  [][]string
	Marked string
	// Pictures are elements for the page as they are: their maker has made them safe, and
	// given them a title.
	Pictures []string
}

// pageStyle is for light and dark, and for paper. Pictures may use its variables. On small
// screens pictures stay readable, and are moved within their frame as tables are; rows of the
// summary, which is prose, are paragraphs there.
const pageStyle = `:root{color-scheme:light dark;--ink:#0b0b0b;--ink-soft:#52514e;--line:#e1e0d9;--page:#fcfcfb;--mark:#9a3412}
@media screen and (prefers-color-scheme:dark){:root{--ink:#fff;--ink-soft:#c3c2b7;--line:#383835;--page:#1a1a19;--mark:#fdba74}}
body{margin:2rem auto;padding:0 1rem;max-width:72rem;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}
p{margin:.5rem 0}p,dd{max-width:60rem}.mark{color:var(--mark)}.scroll{overflow-x:auto;margin:.75rem 0;overflow-wrap:normal}.scroll>.chart{min-width:34rem;max-width:60rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{text-align:left;vertical-align:top;padding:.2rem 1.2rem .2rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--ink-soft)}thead th{vertical-align:bottom}tbody th{font-weight:400;color:inherit;min-width:7rem}
.number{text-align:right}td.number{white-space:nowrap}
a{color:inherit}details{margin:1rem 0}dt{font-weight:600}dd{margin:0 0 .5rem 1.2rem}ul{margin:0;padding-left:1.1rem}
@media screen and (max-width:40rem){.summary thead{display:none}.summary tr{display:block;border-bottom:1px solid var(--line);padding:.4rem 0}
.summary th,.summary td{display:block;border:0;padding:0}.summary td:empty{display:none}}
@media print{body{margin:0;padding:0;max-width:none;font-size:10pt}table{font-size:8pt}th,td{padding-right:.5rem}tbody th{min-width:0}
.scroll{overflow:visible}.scroll>.chart{min-width:0}tr,.chart{break-inside:avoid}h2,dt{break-after:avoid}details::details-content{content-visibility:visible}}
`

// HTML is the page as a file. It is well-formed XML, too.
func (p Page) HTML() string {
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n")
	b.WriteString(`<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>` + "\n")
	b.WriteString(`<meta name="viewport" content="width=device-width, initial-scale=1"/>` + "\n")
	b.WriteString("<title>" + escape(p.Title) + "</title>\n<style>\n" + pageStyle + p.Style + "</style>\n</head>\n<body>\n<main>\n")
	b.WriteString("<h1>" + escape(p.Title) + "</h1>\n")
	if p.Verdict != "" {
		b.WriteString("<p><strong>" + escape(p.Verdict) + "</strong></p>\n")
	}
	p.summary(&b)
	terms(&b, p.Terms)
	paragraphs(&b, "<p>", p.Lead)
	paragraphs(&b, `<p class="mark">`, p.Marks)
	for i, part := range p.Parts {
		id := partID(i)
		b.WriteString("<section aria-labelledby=\"" + id + "\">\n<h2 id=\"" + id + "\">" + escape(part.Title) + "</h2>\n")
		paragraphs(&b, "<p>", part.Text)
		paragraphs(&b, `<p class="mark">`, part.Marks)
		paragraphs(&b, "<p>", part.Notes)
		part.table(&b, id)
		for _, picture := range part.Pictures {
			b.WriteString("<div class=\"scroll\">" + picture + "</div>\n")
		}
		b.WriteString("</section>\n")
	}
	b.WriteString("</main>\n</body>\n</html>\n")
	return b.String()
}

// partID is the name of a part within the page.
func partID(i int) string { return "part-" + strconv.Itoa(i+1) }

// summary is a table of the parts that have a verdict, each with what was wrong.
func (p Page) summary(b *strings.Builder) {
	var rows strings.Builder
	for i, part := range p.Parts {
		if part.Verdict == "" {
			continue
		}
		rows.WriteString("<tr><th scope=\"row\"><a href=\"#" + partID(i) + "\">" + escape(part.Title) + "</a></th><td" + class(len(part.Why) > 0, "mark") + ">" + escape(part.Verdict) + "</td><td>")
		for k, why := range part.Why {
			if k == 0 {
				rows.WriteString("<ul>")
			}
			rows.WriteString("<li>" + escape(why) + "</li>")
			if k == len(part.Why)-1 {
				rows.WriteString("</ul>")
			}
		}
		rows.WriteString("</td></tr>\n")
	}
	if rows.Len() == 0 {
		return
	}
	b.WriteString("<section aria-labelledby=\"summary\">\n<h2 id=\"summary\">Summary</h2>\n")
	b.WriteString("<div class=\"summary\">\n")
	openTable(b, "summary", []string{"what", "verdict", "what was wrong"}, nil)
	b.WriteString(rows.String())
	b.WriteString(closeTable + "</div>\n</section>\n")
}

// terms are behind a heading that opens them.
func terms(b *strings.Builder, list [][2]string) {
	if len(list) == 0 {
		return
	}
	b.WriteString("<details>\n<summary>What the words mean</summary>\n<dl>\n")
	for _, t := range list {
		b.WriteString("<dt>" + escape(t[0]) + "</dt><dd>" + escape(t[1]) + "</dd>\n")
	}
	b.WriteString("</dl>\n</details>\n")
}

func paragraphs(b *strings.Builder, open string, texts []string) {
	for _, t := range texts {
		b.WriteString(open + escape(t) + "</p>\n")
	}
}

// openTable begins a table that is called as the heading with an ID, and says which columns are
// numbers. Where it is wider than the screen it is moved by keys, too.
func openTable(b *strings.Builder, id string, headings []string, numbers []bool) {
	b.WriteString("<div class=\"scroll\" role=\"region\" aria-labelledby=\"" + id + "\" tabindex=\"0\"><table aria-labelledby=\"" + id + "\">\n<thead><tr>")
	for i, text := range headings {
		b.WriteString("<th scope=\"col\"" + class(i < len(numbers) && numbers[i], "number") + ">" + escape(text) + "</th>")
	}
	b.WriteString("</tr></thead>\n<tbody>\n")
}

const closeTable = "</tbody>\n</table></div>\n"

// class is the attribute of an element that belongs to a class, or nothing.
func class(belongs bool, name string) string {
	if !belongs {
		return ""
	}
	return ` class="` + name + `"`
}

func (p Part) table(b *strings.Builder, id string) {
	if len(p.Table) == 0 {
		return
	}
	numbers := p.numbers()
	openTable(b, id, p.Table[0], numbers)
	for _, row := range p.Table[1:] {
		b.WriteString("<tr>")
		for i, cell := range row {
			if i == 0 {
				b.WriteString("<th scope=\"row\">" + escape(cell) + "</th>")
			} else {
				marks := class(i < len(numbers) && numbers[i], "number")
				if p.Marked != "" && cell == p.Marked {
					marks = class(true, "mark")
				}
				b.WriteString("<td" + marks + ">" + escape(ranges.ReplaceAllString(cell, "$1\u2060-\u2060$2")) + "</td>")
			}
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString(closeTable)
}

// numbers says which columns behind the first hold numbers, or nothing, below their headings.
func (p Part) numbers() []bool {
	is := make([]bool, len(p.Table[0]))
	for column := 1; column < len(is); column++ {
		for _, row := range p.Table[1:] {
			if column >= len(row) || row[column] == "" {
				continue
			}
			if is[column] = strings.Trim(row[column], "0123456789.,-") == ""; !is[column] {
				break
			}
		}
	}
	return is
}

// ranges are those of numbers, which a line's end would tear.
var ranges = regexp.MustCompile(`([0-9])-([0-9])`)

// together keeps on one line what a line's end would tear: a number and its sign.
var together = strings.NewReplacer(" %", "\u00a0%", "<= ", "<=\u00a0", ">= ", ">=\u00a0")

// escape makes a text safe within a page, which allows no control characters.
func escape(s string) string {
	return html.EscapeString(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0xfffe || r == 0xffff {
			return ' '
		}
		return r
	}, together.Replace(strings.ToValidUTF8(s, "?"))))
}
