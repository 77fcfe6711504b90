package document

import (
	"html"
	"strings"
)

// Page is a report for browsers: one file that loads nothing and runs nothing.
type Page struct {
	Title string
	// Lead are paragraphs before all parts.
	Lead []string
	// Style is the style sheet of the pictures, as their maker has it.
	Style string
	Parts []Part
}

// Part is a section of a page. What is empty is left out.
type Part struct {
	Title string
	Text  []string
	// Marks say why the part is to be read with care.
	Marks []string
	// Table has a row of headings first.
	Table [][]string
	// Pictures are elements for the page as they are: their maker has made them safe.
	Pictures []string
}

// pageStyle is for light and dark. Pictures may use its variables.
const pageStyle = `:root{color-scheme:light dark;--ink:#0b0b0b;--ink-soft:#52514e;--line:#e1e0d9;--page:#fcfcfb;--mark:#9a3412}
@media(prefers-color-scheme:dark){:root{--ink:#fff;--ink-soft:#c3c2b7;--line:#383835;--page:#1a1a19;--mark:#fdba74}}
body{margin:2rem auto;padding:0 1rem;max-width:60rem;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}
.mark{color:var(--mark)}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.2rem 1.2rem .2rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--ink-soft)}
`

// HTML is the page as a file. It is well-formed XML, too.
func (p Page) HTML() string {
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n")
	b.WriteString(`<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>` + "\n")
	b.WriteString(`<meta name="viewport" content="width=device-width, initial-scale=1"/>` + "\n")
	b.WriteString("<title>" + escape(p.Title) + "</title>\n<style>\n" + pageStyle + p.Style + "</style>\n</head>\n<body>\n")
	b.WriteString("<h1>" + escape(p.Title) + "</h1>\n")
	paragraphs(&b, "<p>", p.Lead)
	for _, part := range p.Parts {
		b.WriteString("<h2>" + escape(part.Title) + "</h2>\n")
		paragraphs(&b, "<p>", part.Text)
		paragraphs(&b, `<p class="mark">`, part.Marks)
		table(&b, part.Table)
		for _, picture := range part.Pictures {
			b.WriteString("<div class=\"scroll\">" + picture + "</div>\n")
		}
	}
	b.WriteString("</body>\n</html>\n")
	return b.String()
}

func paragraphs(b *strings.Builder, open string, texts []string) {
	for _, t := range texts {
		b.WriteString(open + escape(t) + "</p>\n")
	}
}

func table(b *strings.Builder, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	b.WriteString("<div class=\"scroll\"><table>\n")
	for i, row := range rows {
		open, end := "<td>", "</td>"
		if i == 0 {
			open, end = "<th>", "</th>"
		}
		b.WriteString("<tr>")
		for _, cell := range row {
			b.WriteString(open + escape(cell) + end)
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString("</table></div>\n")
}

// escape makes a text safe within a page, which allows no control characters.
func escape(s string) string {
	return html.EscapeString(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0xfffe || r == 0xffff {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
}
