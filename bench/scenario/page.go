package scenario

import (
	"fmt"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/chart"
	"github.com/sallyport-net/sallyport/bench/document"
	"github.com/sallyport-net/sallyport/bench/trial"
)

// page is the result for a browser.
func (r *result) page() string {
	p := document.Page{
		Title: "Sallyport gateway, measured " + r.Date.Format(time.DateOnly), Verdict: r.verdict(), Lead: r.conditions(), Terms: r.terms(), Style: chart.Style,
	}
	for _, problem := range r.Problems {
		p.Marks = append(p.Marks, "FAILED: "+problem)
	}
	for _, o := range r.Scenarios {
		part := document.Part{Title: o.Name + ": " + o.Title}
		for _, note := range o.notes() {
			if plain(note) {
				part.Notes = append(part.Notes, note)
			} else {
				part.Marks = append(part.Marks, note)
			}
		}
		part.Verdict, part.Why = o.verdict()
		if len(o.Steps) > 0 {
			part.Table = o.rows()
		}
		for _, c := range o.charts() {
			part.Pictures = append(part.Pictures, c.SVG())
		}
		p.Parts = append(p.Parts, part)
	}
	return p.HTML()
}

// plain tells the notes that are facts from those by which something is to be read with care.
func plain(note string) bool {
	return strings.HasPrefix(note, noteLimit) || strings.HasPrefix(note, noteBeside)
}

// verdict is the run in a line.
func (r *result) verdict() string {
	good := 0
	for _, o := range r.Scenarios {
		if _, why := o.verdict(); len(why) == 0 {
			good++
		}
	}
	n := r.faults()
	verb := "make"
	if n == 1 {
		verb = "makes"
	}
	text := fmt.Sprintf("%d of %d scenarios are good, %s %s the run fail", good, len(r.Scenarios), trial.Plural(n, "finding"), verb)
	if len(r.Problems) > 0 {
		text += "; it ended by: " + strings.Join(r.Problems, "; ")
	}
	return text + "."
}

// maxWhy is how many reasons the summary has of each scenario; all are where the scenario is.
const maxWhy = 3

// verdict says how a scenario came out, by the worst of it, and why it is not good.
func (o *outcome) verdict() (verdict string, why []string) {
	verdict = "good"
	notes := []struct {
		mark, verdict string // the first word of a note, and what it makes of the scenario
	}{{"WRONG", "wrong"}, {"FAILED", "failed"}, {"REFUSED", "noisy, thrown away"}, {"NOT RUN", "not run"}, {"NOTE", "to be read with care"}}
	for _, n := range notes {
		for _, note := range o.notes() {
			if text, ok := strings.CutPrefix(note, n.mark+": "); ok {
				if why = append(why, text); len(why) == 1 {
					verdict = n.verdict
				}
			}
		}
	}
	if more := len(why) - maxWhy; more > 0 {
		why = append(why[:maxWhy], fmt.Sprintf("and %d more, which are told below", more))
	}
	return verdict, why
}

// terms say what the columns mean that there are, and the verdicts.
func (r *result) terms() (list [][2]string) {
	there := map[string]bool{}
	for _, o := range r.Scenarios {
		for _, title := range o.rows()[0] {
			there[title] = true
		}
	}
	means := meanings()
	for _, f := range figures() {
		if there[f.title] {
			list = append(list, [2]string{f.title, means[f.name]})
		}
	}
	if there["p50, us"] {
		list = append(list, [2]string{"p50, p99, p99.9, max, us", "Half, 99 of 100, 999 of 1,000, and all took at most so many microseconds, counted from when a request or packet was due. A - stands where there were too few to say."})
	}
	return append(list,
		[2]string{"wrong", "The gateway did what it must not: packets with a source outside of the pair, damaged, twice, or to somebody else."},
		[2]string{"failed", "Something could not be measured to its end."},
		[2]string{"to be read with care", "The machine was noisy (NOISY says how), or the harness and not the gateway was at its limit."},
		[2]string{"LIMIT", "What kept the next rate from passing. The source is said to have been held up where packets were late beside a gateway's core that had time, and next to none were lost: what a gateway holds back queues up, and queues fill and lose. Where the machine was noisy nobody knows what it was."})
}

// meanings explain the figures, by their names in JSON.
func meanings() map[string]string {
	return map[string]string{
		figureRate:        "How many arrived, were answered or done in a second.",
		figureGbps:        "Throughput: payload of TCP, or whole IP packets.",
		figureLoss:        "Part of what was sent that did not arrive.",
		figurePeak:        "The highest rate that passes: at most 0.1 % lost or late, nothing failed, and no queue that only grows.",
		figureFailed:      "Connections, requests or attaches that came to nothing.",
		figureResent:      "Segments that the harness's TCP had to send again.",
		figureProcess:     "CPU time of the gateway's process for each packet, connection or attach, in microseconds.",
		figureCore:        "CPU time of the gateway's core for each, with the kernel's part, in microseconds.",
		figureProcessGB:   "CPU time of the gateway's process for each GB, in seconds.",
		figureCoreGB:      "CPU time of the gateway's core for each GB, with the kernel's part, in seconds.",
		figureBusy:        "Part of the time in which the gateway's core was in use: by all of the load, of whatever kinds, and by what else ran there.",
		figureDuplicates:  "Packets that arrived twice.",
		figureReordered:   "Packets that arrived behind later ones of their flow.",
		figureDamaged:     "Packets that arrived with other contents.",
		figureAttached:    "Sandboxes attached in a second.",
		figureAttachP50:   "Half of the attaches were answered by the control API within so many milliseconds.",
		figureAttachP99:   "99 of 100 attaches were answered by the control API within so many milliseconds.",
		figureReady:       "Half of the sandboxes had their first answer through the gateway so many milliseconds after the attach was due.",
		figureReadyP99:    "99 of 100 sandboxes had their first answer through the gateway so many milliseconds after the attach was due.",
		figureMemory:      "Resident memory of the gateway's process.",
		figureFailoverP50: "Half of the times, new connections were answered again so many milliseconds after a host was lost.",
		figureFailoverP99: "99 of 100 times, new connections were answered again within so many milliseconds.",
		figureFailoverMax: "Each time, new connections were answered again within so many milliseconds.",
	}
}
