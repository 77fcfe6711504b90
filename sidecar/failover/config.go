package failover

import (
	"errors"
	"fmt"
	"time"
)

// Config holds the rhythm and the limits. Fields that are zero take the default
// that is named at each.
type Config struct {
	// InUse is the interval of probes on a path in use; 100 ms.
	InUse time.Duration
	// Standby is the interval of probes on all other paths; 1 s.
	Standby time.Duration
	// Suspect is the interval of probes on all paths of an alarmed group; 50 ms.
	Suspect time.Duration

	// MissFloor is the least time that an answer is waited for; 50 ms, and at
	// most 1 s.
	MissFloor time.Duration
	// MissRTTs is how many smoothed round trips an answer is waited for, where
	// that is longer than MissFloor; 4.
	MissRTTs int
	// Misses is how many misses in a row make a path dead; 3.
	Misses int
	// MissesBusy is how many it takes where other packets of the path have
	// arrived since the first miss, so that load cannot fake a death; 5.
	MissesBusy int

	// Hold is how long a preferred path must be good before a group returns to
	// it; 60 s.
	Hold time.Duration
	// HoldJitter bounds the random time that is added to Hold, so that workers
	// do not return at once; 30 s.
	HoldJitter time.Duration
	// Failbacks is how many times a group may return in a FailbackWindow; 2.
	Failbacks int
	// FailbackWindow is the sliding time for Failbacks; 10 min.
	FailbackWindow time.Duration
	// Linger is how long flows may stay on a path that was left without
	// loss; 10 min. For so long the path is watched like one in use.
	Linger time.Duration
}

// missCeiling is the longest time that an answer is waited for, so that a path
// with a huge round trip is still judged, and the time for a path without
// any sample (RFC 6298 section 2.1).
const missCeiling = time.Second

// longest bounds all durations of a Config, so that no sum of instants overflows.
const longest = 10 * 365 * 24 * time.Hour

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.InUse, 100 * time.Millisecond},
		{&c.Standby, time.Second},
		{&c.Suspect, 50 * time.Millisecond},
		{&c.MissFloor, 50 * time.Millisecond},
		{&c.Hold, 60 * time.Second},
		{&c.HoldJitter, 30 * time.Second},
		{&c.FailbackWindow, 10 * time.Minute},
		{&c.Linger, 10 * time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	for _, n := range []struct {
		field *int
		value int
	}{
		{&c.MissRTTs, 4},
		{&c.Misses, 3},
		{&c.MissesBusy, max(5, c.Misses)},
		{&c.Failbacks, 2},
	} {
		if *n.field == 0 {
			*n.field = n.value
		}
	}
	return c
}

// Validate says what is wrong with a Config, all at once. Zero fields stand for
// their defaults.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"InUse", c.InUse}, {"Standby", c.Standby}, {"Suspect", c.Suspect}, {"MissFloor", c.MissFloor},
		{"Hold", c.Hold}, {"HoldJitter", c.HoldJitter}, {"FailbackWindow", c.FailbackWindow}, {"Linger", c.Linger},
	} {
		if d.value < 0 || d.value > longest {
			errs = append(errs, fmt.Errorf("the option %s is %v: give a duration above 0 and up to %v", d.name, d.value, longest))
		}
	}
	if c.Suspect < time.Millisecond {
		errs = append(errs, fmt.Errorf("the option Suspect is %v: probes need at least 1ms in between", c.Suspect))
	}
	if c.Suspect > c.InUse || c.InUse > c.Standby {
		errs = append(errs, fmt.Errorf("the options Suspect %v, InUse %v, Standby %v: intervals must not fall in this order", c.Suspect, c.InUse, c.Standby))
	}
	if c.MissFloor > missCeiling {
		errs = append(errs, fmt.Errorf("the option MissFloor is %v: give at most %v", c.MissFloor, missCeiling))
	}
	if c.MissRTTs < 1 || c.MissRTTs > 1000 {
		errs = append(errs, fmt.Errorf("the option MissRTTs is %d: give 1 to 1000", c.MissRTTs))
	}
	if c.Misses < 1 || c.MissesBusy < c.Misses || c.MissesBusy >= window {
		errs = append(errs, fmt.Errorf("the options Misses %d, MissesBusy %d: give at least 1, and MissesBusy from Misses to %d", c.Misses, c.MissesBusy, window-1))
	}
	if c.Failbacks < 1 || c.Failbacks > 1000 {
		errs = append(errs, fmt.Errorf("the option Failbacks is %d: give 1 to 1000", c.Failbacks))
	}
	return errors.Join(errs...)
}
