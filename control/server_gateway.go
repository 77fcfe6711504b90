package control

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// reportsPath is where hosts report; a report may be larger than other requests.
const reportsPath = "/v1/gateway/reports"

// updates holds the call until there is something newer than the caller's cursor,
// at most as long as the caller wants to wait.
func (s *server) updates(w http.ResponseWriter, r *http.Request) {
	after, wait, err := parseFollow(r.URL.Query())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	u, err := s.store.Next(ctx, after)
	switch {
	case err == nil:
		s.stream(w, u)
	case r.Context().Err() == nil: // only the wait is over
		w.WriteHeader(http.StatusNoContent)
	default:
		s.fail(w, r, err)
	}
}

// parseFollow reads what a follower asks for.
func parseFollow(query url.Values) (after spec.Cursor, wait time.Duration, err error) {
	for name, values := range query {
		value := values[len(values)-1]
		switch name {
		case "store":
			if after.Store = value; value != "" && !spec.ValidID(value) {
				return after, 0, badRequest("store: %q does not name a store; take it from the last update", value)
			}
		case "after":
			if after.Revision, err = strconv.ParseUint(value, 10, 64); err != nil {
				return after, 0, badRequest("after: %q is not a revision; take it from the last update", value)
			}
		case "wait":
			ms, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return after, 0, badRequest("wait: %q is not a number of milliseconds", value)
			}
			wait = min(time.Duration(ms)*time.Millisecond, api.MaxWait)
		default:
			return after, 0, badRequest("%s: unknown parameter; there are store, after and wait", name)
		}
	}
	if after.Store == "" && after.Revision != 0 {
		return after, 0, badRequest("store: revision %d of no store; take both from the last update, or leave out both", after.Revision)
	}
	return after, wait, nil
}

// stream answers with an update. Its header leaves before the body is made, which
// takes a while where very many are attached: the caller sees that it is coming.
func (s *server) stream(w http.ResponseWriter, u spec.Update) {
	to := http.NewResponseController(w)
	to.SetWriteDeadline(time.Now().Add(s.patience))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	// An error of either means that the caller has gone; it asks again.
	if err := to.Flush(); err == nil {
		json.NewEncoder(w).Encode(u)
	}
}

func (s *server) acknowledge(w http.ResponseWriter, r *http.Request) {
	var ack api.Acknowledgement
	err := s.readBody(w, r, &ack, anyFields)
	if err == nil && (!spec.ValidID(ack.Store) || ack.Revision == 0) {
		err = badRequest("store, revision: revision %d of store %q is no place in the changes; take both from the last update", ack.Revision, ack.Store)
	}
	if err == nil {
		err = s.store.Acknowledge(r.Context(), ack.Host, ack.Cursor)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) report(w http.ResponseWriter, r *http.Request) {
	var report spec.HostReport
	err := s.readBody(w, r, &report, anyFields)
	if err == nil {
		err = s.store.Report(r.Context(), report)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
