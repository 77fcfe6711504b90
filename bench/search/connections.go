package search

// ConnectionLimits are what a rate of short connections may show and still pass. Whoever
// measures states its own.
type ConnectionLimits struct {
	// Failed is the part of connections that may fail, or not begin in time. Late is the part
	// of which that may be said, or that they end late.
	Failed, Late float64
	// Resent is the part of all segments that may be sent again; 1: any.
	Resent float64
	// Full is from what part of its time on a core counts as busy all the time.
	Full float64
	// Unbegun says that only connections that were not begun in time show that the source was the
	// limit. Without it late ones do, too, beside an idle core: for a gateway that is known to
	// hold no connection back.
	Unbegun bool
}

// Connections is what came of a load of short connections.
type Connections struct {
	// Due is how many should have begun. Skipped did not; Failed ended otherwise than well;
	// Late had not ended in time.
	Due, Skipped, Failed, Late uint64
	// Segments were sent, Resent of them again. Wrong ones came from somebody else than the
	// gateway, or damaged.
	Segments, Resent, Wrong uint64
	// Busy is the part of the time in which the gateway's core was used; less than 0: nobody
	// sees it.
	Busy float64
}

// Passes says whether a gateway could carry that for ever.
func (l ConnectionLimits) Passes(c Connections) bool {
	failed, due := c.Failed+c.Skipped, float64(c.Due)
	return c.Wrong == 0 && float64(failed) <= l.Failed*due && float64(failed+c.Late) <= l.Late*due && l.settled(c)
}

// Starved says of what does not pass that the source was the limit.
func (l ConnectionLimits) Starved(c Connections) bool {
	return c.Failed == 0 && l.settled(c) && c.Busy >= 0 && c.Busy < l.Full && (c.Skipped > 0 || !l.Unbegun)
}

// settled says that next to nothing was sent again.
func (l ConnectionLimits) settled(c Connections) bool {
	return float64(c.Resent) <= l.Resent*float64(c.Segments)
}
