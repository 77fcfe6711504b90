package sidecar

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

// SwitchRecord is one decision and what it did.
type SwitchRecord struct {
	// At is when it was decided.
	At time.Time `json:"at"`
	// Prefers is the host that the sandboxes concerned prefer.
	Prefers string    `json:"prefers"`
	From    *HostName `json:"from,omitempty"`
	To      *HostName `json:"to,omitempty"` // nil: there is none
	Reason  string    `json:"reason"`
	// Switched says that new flows go elsewhere from now on; else only flows that
	// had stayed behind are concerned.
	Switched bool `json:"switched"`
	// Lost says that the flows of the old gateway were taken off it.
	Lost bool `json:"lost"`
	// Detection is the time from the first sign to the decision, Took that from there
	// until the last flow was dealt with.
	Detection time.Duration `json:"-"`
	Took      time.Duration `json:"-"`
	// Reset counts TCP connections that were reset, Moved the flows that were moved,
	// Resent the SYNs among them that were sent again.
	Reset  uint64 `json:"reset"`
	Moved  uint64 `json:"moved"`
	Resent uint64 `json:"resent"`

	DetectionMillis float64 `json:"detectionMillis"`
	SwitchMillis    float64 `json:"switchMillis"`
}

// switchover is a decision that is being carried out.
type switchover struct {
	watch   *watch
	began   packet.Instant
	record  SwitchRecord // written before the first part begins and after the last
	pending atomic.Int64 // parts that are not done
	reset   atomic.Uint64
	moved   atomic.Uint64
	resent  atomic.Uint64
}

// newSwitchover describes a decision of now. The caller holds the watch's lock.
func (w *watch) newSwitchover(g *group, from failover.PathID, reason string) *switchover {
	v := &switchover{watch: w, began: w.clock.now()}
	v.record = SwitchRecord{At: time.Now(), Prefers: g.key.host, Reason: reason}
	if t := w.tracks[from]; t != nil {
		v.record.From = &t.host
	}
	if t := w.tracks[failover.PathID(g.choice.Load())]; t != nil {
		v.record.To = &t.host
	}
	return v
}

// begin says how many sandboxes take part.
func (v *switchover) begin(parts int) {
	if v.pending.Add(int64(parts)); parts == 0 {
		v.watch.tasks.Go(v.finish)
	}
}

// done is told of each sandbox what became of its flows.
func (v *switchover) done(part swept) {
	v.reset.Add(part.reset)
	v.moved.Add(part.moved)
	v.resent.Add(part.resent)
	if v.pending.Add(-1) == 0 {
		v.watch.tasks.Go(v.finish)
	}
}

// finish reports it, in a goroutine of its own, because who reads the log may be slow.
func (v *switchover) finish() {
	w, r := v.watch, v.record
	r.Took = time.Duration(w.clock.now() - v.began)
	r.Reset, r.Moved, r.Resent = v.reset.Load(), v.moved.Load(), v.resent.Load()
	r.DetectionMillis, r.SwitchMillis = millis(r.Detection), millis(r.Took)
	what, level := "sandboxes go to another gateway", slog.LevelInfo
	if r.Lost {
		level = slog.LevelWarn
	}
	if !r.Switched {
		what = "flows that had stayed with a former gateway are ended"
		if r.Reset+r.Moved == 0 { // as it nearly always is: it must not crowd out the others
			level = slog.LevelDebug
		}
	}
	if level > slog.LevelDebug {
		w.records.add(r)
		w.switches.add(w.network, r)
	}
	w.log.Log(context.Background(), level, what,
		"network", w.network, "prefers", r.Prefers, "from", r.From.String(), "to", r.To.String(), "reason", r.Reason,
		"detection_ms", r.DetectionMillis, "switch_ms", r.SwitchMillis,
		"flows_reset", r.Reset, "flows_moved", r.Moved, "syns_resent", r.Resent)
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// String is the host and its region.
func (h *HostName) String() string {
	if h == nil {
		return "none"
	}
	return h.Host + " in " + h.Region
}

// keptSwitches is how many decisions of a network are remembered.
const keptSwitches = 16

// switchLog remembers the last decisions.
type switchLog struct {
	mu   sync.Mutex
	last []SwitchRecord
}

func (l *switchLog) add(r SwitchRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) == keptSwitches {
		l.last = slices.Delete(l.last, 0, 1)
	}
	l.last = append(l.last, r)
}

// read returns them, the oldest first.
func (l *switchLog) read() []SwitchRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]SwitchRecord{}, l.last...)
}

// switchMetrics count decisions of all networks since the sidecar's start.
type switchMetrics struct {
	switches        *prometheus.CounterVec
	detection, took prometheus.Histogram
	reset, moved    *prometheus.CounterVec
	resent          *prometheus.CounterVec
}

func newSwitchMetrics() *switchMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sallyport_sidecar_" + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets ...float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sallyport_sidecar_" + name, Help: help, Buckets: buckets})
	}
	return &switchMetrics{
		switches: counter("switches_total", "Times that sandboxes' new flows went to another gateway, by reason.", "network", "reason"),
		detection: histogram("detection_seconds", "From the first missed probe, or the first bad answer, to the decision to leave a gateway.",
			.05, .1, .15, .2, .25, .3, .35, .4, .5, .7, 1, 2, 5),
		took: histogram("switch_seconds", "From the decision until all flows of the old gateway were dealt with.",
			.0001, .0003, .001, .003, .01, .03, .1, .3, 1),
		reset:  counter("flows_reset_total", "TCP connections that were reset because their gateway was lost or left.", "network"),
		moved:  counter("flows_moved_total", "Flows that moved to another gateway.", "network"),
		resent: counter("syns_resent_total", "SYNs of connections still opening that were sent again through another gateway.", "network"),
	}
}

func (m *switchMetrics) add(network string, r SwitchRecord) {
	if r.Switched {
		m.switches.WithLabelValues(network, r.Reason).Inc()
		if r.Detection > 0 {
			m.detection.Observe(r.Detection.Seconds())
		}
		if r.Lost {
			m.took.Observe(r.Took.Seconds())
		}
	}
	m.reset.WithLabelValues(network).Add(float64(r.Reset))
	m.moved.WithLabelValues(network).Add(float64(r.Moved))
	m.resent.WithLabelValues(network).Add(float64(r.Resent))
}

// collectors are all of them.
func (m *switchMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.switches, m.detection, m.took, m.reset, m.moved, m.resent}
}
