package progress

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// work is what takes a while, as a terminal shows it: how far it is, what it is, a bar while it is
// known how long it takes and else a sign of life, and how fast it goes. The narrower a terminal,
// the more is left out: first the bar, then what stands at the end.
type work struct {
	what      string
	began     time.Time
	takes     time.Duration // about; 0: unknown
	rate      atomic.Pointer[rate]
	bar, sign mpb.BarFiller
}

func newWork(what string, takes time.Duration) *work {
	return &work{
		what: what, began: time.Now(), takes: takes,
		bar: mpb.BarStyle().Build(), sign: mpb.SpinnerStyle("-", `\`, "|", "/").Build(),
	}
}

// rate is how fast it goes: per second, and the part that is lost; less than 0: unknown.
type rate struct{ perSecond, loss float64 }

// Columns of a bar. One with less says nothing.
const (
	mostBar  = 30
	leastBar = 8
)

// options are how it is painted, from left to right; between, mpb paints what Fill says.
func (w *work) options() []mpb.BarOption {
	return []mpb.BarOption{
		mpb.PrependDecorators(decor.Any(w.lead), decor.Any(func(decor.Statistics) string { return w.what })),
		mpb.BarFillerTrim(),
		mpb.AppendDecorators(decor.Any(w.speed)),
	}
}

// elapsed is for how long it has gone on, and whether the rest is known: it is not where it takes
// longer than was thought.
func (w *work) elapsed() (d time.Duration, known bool) {
	d = time.Since(w.began)
	return d, d < w.takes
}

// Fill implements [mpb.BarFiller].
func (w *work) Fill(to io.Writer, s decor.Statistics) error {
	filler, least, most := w.sign, 1, 1
	d, known := w.elapsed()
	if known {
		filler, least, most = w.bar, leastBar, mostBar
	}
	if s.AvailableWidth--; s.AvailableWidth < least { // beside a blank
		return nil
	}
	if _, err := io.WriteString(to, " "); err != nil {
		return err
	}
	s.RequestedWidth, s.Total, s.Current = most, int64(w.takes), int64(d)
	return filler.Fill(to, s)
}

// lead is how far it is. It begins at the line's begin whatever was typed.
func (w *work) lead(decor.Statistics) string {
	d, known := w.elapsed()
	if known {
		return fmt.Sprintf("\r%3.0f %%  ", 100*float64(d)/float64(w.takes))
	}
	return fmt.Sprintf("\r%3.0f s  ", d.Seconds())
}

// speed is how fast it goes, in columns enough for a bar not to change its width by each digit.
func (w *work) speed(decor.Statistics) string {
	r := w.rate.Load()
	if r == nil {
		return ""
	}
	text := Group(r.perSecond) + "/s"
	if r.loss >= 0 {
		text += fmt.Sprintf("  %.2f %% lost", 100*r.loss)
	}
	return fmt.Sprintf("  %-23s", text)
}
