package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"maps"
	"net/http"
	"net/http/pprof"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

const (
	// longestProfile bounds how long one may be taken, in seconds.
	longestProfile = 60
	// mutexFraction is how many contentions there are for one that a profile of mutexes
	// notes; blockRate is the time in nanoseconds for which on average one wait is noted
	// in a profile of blocking. Both are noted only while such a profile is taken: it costs.
	mutexFraction = 10
	blockRate     = 10_000
)

// profile is one kind of them.
type profile struct {
	seconds int // how long it is taken where the query does not say; 0: it is of the moment
	// take writes it to who asks. The request's query is made anew from ours.
	take http.HandlerFunc
}

// profiles are the kinds, by their names in the path.
func profiles() map[string]profile {
	at := func(name string) http.HandlerFunc { return pprof.Handler(name).ServeHTTP }
	return map[string]profile{
		"profile":   {30, pprof.Profile},
		"trace":     {1, pprof.Trace},
		"heap":      {0, at("heap")},
		"allocs":    {0, at("allocs")},
		"goroutine": {0, at("goroutine")},
		"mutex": {10, func(w http.ResponseWriter, r *http.Request) {
			defer runtime.SetMutexProfileFraction(runtime.SetMutexProfileFraction(mutexFraction))
			at("mutex")(w, r)
		}},
		"block": {10, func(w http.ResponseWriter, r *http.Request) {
			runtime.SetBlockProfileRate(blockRate)
			defer runtime.SetBlockProfileRate(0)
			at("block")(w, r)
		}},
	}
}

// profiler serves profiles of this process, one at a time, to who is on this machine and
// has the token.
type profiler struct {
	token [sha256.Size]byte // its digest: digests have one length
	kinds map[string]profile
	busy  atomic.Bool
}

func newProfiler(token string) *profiler {
	return &profiler{token: sha256.Sum256([]byte(token)), kinds: profiles()}
}

// ServeHTTP implements http.Handler.
func (p *profiler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	digest := sha256.Sum256([]byte(token))
	none := !strings.EqualFold(scheme, "Bearer") || token == ""
	if none || subtle.ConstantTimeCompare(digest[:], p.token[:]) != 1 {
		says := "the token is not that of admin.token_file; send what is in the file that the daemon's configuration names there (a new one is read at the daemon's start)"
		if none {
			says = "profiles need the token in the file that admin.token_file names: send \"Authorization: Bearer TOKEN\""
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="sallyport"`)
		http.Error(w, says, http.StatusUnauthorized)
		return
	}
	if !fromHere(r) {
		http.Error(w, "the token would cross the network in the clear: ask on the gateway host itself, by its loopback address and by no proxy", http.StatusForbidden)
		return
	}
	kind, ok := p.kinds[r.PathValue("kind")]
	if !ok {
		http.Error(w, "there is no such profile; take one of "+strings.Join(slices.Sorted(maps.Keys(p.kinds)), ", "), http.StatusNotFound)
		return
	}
	query, err := kind.query(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !p.busy.CompareAndSwap(false, true) {
		http.Error(w, "another profile is being taken; ask again when it has ended", http.StatusServiceUnavailable)
		return
	}
	defer p.busy.Store(false)
	asked := r.Clone(r.Context())
	asked.URL.RawQuery, asked.Form = query.Encode(), nil
	kind.take(w, asked)
}

// query checks what is asked for, and makes of it what the profile is taken by.
func (k profile) query(q url.Values) (url.Values, error) {
	out := url.Values{}
	seconds := k.seconds
	for name, values := range q {
		n, err := strconv.Atoi(values[0])
		switch {
		case name == "seconds" && err == nil && n >= 1 && n <= longestProfile:
			seconds = n
		case name == "seconds":
			return nil, fmt.Errorf("seconds: %q cannot be; write 1 to %d", values[0], longestProfile)
		case name == "debug" && err == nil && n >= 0 && n <= 2:
			out.Set("debug", values[0])
		default:
			return nil, fmt.Errorf("%s: there is no such parameter, or not with %q; seconds is 1 to %d, debug (text instead of pprof's form) 0 to 2", name, values[0], longestProfile)
		}
	}
	if seconds > 0 {
		out.Set("seconds", strconv.Itoa(seconds))
		out.Del("debug") // of two moments there is no text
	}
	return out, nil
}

// noProfiles answers where no token is set.
func noProfiles(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "profiles are not served: name a file with a token of their own as admin.token_file, and restart", http.StatusNotFound)
}
