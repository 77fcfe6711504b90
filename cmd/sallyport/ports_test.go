package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// What sallyportd answers, word for word.
const (
	portsJSON = `{"network":"net_1","ips":[{"ip":"203.0.113.1",` +
		`"shared":[{"protocol":"udp","used":2,"held":0,"left":63486},{"protocol":"icmp","used":0,"held":0,"left":65536}],` +
		`"busiest":[{"protocol":"tcp","destination":"192.0.2.80:5432","used":18274,"held":7,"left":45207},{"protocol":"tcp","destination":"192.0.2.80:443","used":120,"held":0,"left":63368}],"othersAtMost":3,` +
		`"destination":{"protocol":"tcp","destination":"192.0.2.80:5432","used":18274,"held":7,"left":45207,"users":2,"sandboxes":[{"inner":"10.20.0.2","sessions":16384},{"inner":"10.20.7.10","sessions":1890}]},` +
		`"sandboxes":[{"inner":"10.20.0.2","sessions":16384,"halfOpen":4096,"ports":16384,"tcp":16384,"udp":0,"icmp":0}]},` +
		`{"ip":"203.0.113.2","draining":true,"shared":[{"protocol":"udp","used":0,"held":0,"left":63488}],"busiest":[],"othersAtMost":0,` +
		`"destination":{"protocol":"tcp","destination":"192.0.2.80:5432","used":0,"held":0,"left":63488,"users":0,"sandboxes":[]},"sandboxes":[]}]}` + "\n"
	sessionJSON  = `{"protocol":"tcp","inner":"10.20.0.2:40000","external":"203.0.113.1:2000","remote":"192.0.2.80:5432","state":"established","ageSeconds":61,"expiresInSeconds":7380}`
	sessionsJSON = `{"network":"net_1","sessions":[` + sessionJSON + `,{"protocol":"udp","inner":"10.20.255.254:65535","external":"203.0.113.1:65535","remote":"255.255.255.254:65535","state":"live","ageSeconds":0,"expiresInSeconds":299}]`
)

// adminWorld answers in turn what it is told to, and keeps what it was asked.
type adminWorld struct {
	t       *testing.T
	at      string
	answers []answer
	mu      sync.Mutex
	asked   []string
}

type answer struct {
	status int
	body   string
}

func newAdmin(t *testing.T, answers ...answer) *adminWorld {
	t.Helper()
	w := &adminWorld{t: t, answers: answers}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked = append(w.asked, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Authorization"))
		n := len(w.asked)
		if n > len(w.answers) {
			t.Errorf("asked once more: %s", w.asked[n-1])
			n = len(w.answers)
		}
		rw.WriteHeader(w.answers[n-1].status)
		_, _ = rw.Write([]byte(w.answers[n-1].body))
	}))
	t.Cleanup(s.Close)
	w.at = strings.TrimPrefix(s.URL, "http://")
	return w
}

func (w *adminWorld) run(args ...string) (string, error) {
	w.t.Helper()
	return execute(append(args, "--admin", w.at)...)
}

func (w *adminWorld) times() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

func (w *adminWorld) wantAsked(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := strings.Join(w.asked, "\n"); got != strings.Join(want, "\n") {
		w.t.Errorf("asked\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// squeezed is a text with its columns one blank apart.
func squeezed(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

// The tables say who uses the ports, and JSON is the daemon's own.
func TestPorts(t *testing.T) {
	w := newAdmin(t, answer{200, portsJSON}, answer{200, portsJSON})
	out, err := w.run("ports", "net_1", "--destination", "192.0.2.80:5432", "--top", "2")
	if err != nil {
		t.Fatal(err)
	}
	const want = `DEDICATED IP PROTOCOL DESTINATION PORTS USED PORTS HELD PORTS LEFT SANDBOXES
203.0.113.1 tcp 192.0.2.80:5432 18274 7 45207 2
203.0.113.2 (draining) tcp 192.0.2.80:5432 0 0 63488 0

DEDICATED IP INNER SESSIONS THERE
203.0.113.1 10.20.0.2 16384
203.0.113.1 10.20.7.10 1890

DEDICATED IP PROTOCOL DESTINATION PORTS USED PORTS HELD PORTS LEFT
203.0.113.1 tcp 192.0.2.80:5432 18274 7 45207
203.0.113.1 tcp 192.0.2.80:443 120 0 63368
203.0.113.1 tcp any other - - at least 63485
203.0.113.1 udp all 2 0 63486
203.0.113.1 icmp all 0 0 65536
203.0.113.2 (draining) udp all 0 0 63488

DEDICATED IP INNER PORTS USED SESSIONS HALF OPEN TCP UDP ICMP
203.0.113.1 10.20.0.2 16384 16384 4096 16384 0 0

Whose an inner address is: --names, or ` + "`sallyport attachments`."
	if got := squeezed(out); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	out, err = w.run("ports", "net_1", "--output", "json")
	if compact := strings.NewReplacer("\n", "", " ", "").Replace(out); err != nil || compact != strings.TrimSpace(portsJSON) {
		t.Errorf("in JSON: %v\n%s", err, compact)
	}
	w.wantAsked("GET /v1/networks/net_1/ports?destination=192.0.2.80%3A5432&protocol=tcp&top=2 ", "GET /v1/networks/net_1/ports?top=10 ")
}

// One address, none, and what a terminal would act on.
func TestPortsOfHalfAPair(t *testing.T) {
	w := newAdmin(t,
		answer{200, `{"network":"net_1","ips":[{"ip":"203.0.113.1","shared":[{"protocol":"\u001b[31m","used":0,"held":0,"left":1}],"busiest":[],"othersAtMost":0,"sandboxes":[]}]}`},
		answer{200, `{"network":"net_1","ips":[]}`})
	out, err := w.run("ports", "net_1")
	if err != nil || !strings.Contains(out, "other dedicated IP is not on this host") || !strings.Contains(out, "�[31m") || strings.Contains(out, "INNER") || strings.Contains(out, "THERE") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = w.run("ports", "net_1"); err != nil || !strings.Contains(out, "none of the dedicated IPs of net_1") {
		t.Errorf("%v\n%s", err, out)
	}
}

// With --names the control API says whose the addresses are; while it does not answer,
// what the gateway says is printed all the same.
func TestPortsWithNames(t *testing.T) {
	control := newWorld(t)
	control.must(attachArgs("--public-key", hostKey)...)
	if a := control.store.List("", 1).Attachments[0]; a.Inner != netip.MustParseAddr("10.20.0.2") {
		t.Fatalf("attached: %+v", a)
	}
	w := newAdmin(t, answer{200, portsJSON}, answer{200, portsJSON})
	out, err := control.sallyport("ports", "net_1", "--destination", "192.0.2.80:5432", "--names", "--admin", w.at)
	if got := squeezed(out); err != nil || !strings.Contains(got, `
DEDICATED IP INNER SESSIONS THERE PROJECT ENVIRONMENT KIND
203.0.113.1 10.20.0.2 16384 prj_1 production function
203.0.113.1 10.20.7.10 1890 - - -
`) || !strings.HasSuffix(got, "\n203.0.113.1 10.20.0.2 16384 16384 4096 16384 0 0 prj_1 production function") {
		t.Errorf("%v\n%s", err, got)
	}
	out, err = w.run("ports", "net_1", "--names", "--api", "unix:///nonexistent/api.sock", "--token-file", control.token)
	if err == nil || !strings.Contains(err.Error(), "--names: cannot reach the control API") || !strings.Contains(out, "18274") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Pages follow one another up to the limit, and their columns stand below one another.
func TestSessions(t *testing.T) {
	more := answer{200, sessionsJSON + `,"next":"0.77"}`}
	last := answer{200, sessionsJSON + `}`}
	w := newAdmin(t, more, last)
	out, err := w.run("sessions", "net_1", "--all", "--inner", "10.20.0.2", "--destination", "192.0.2.80:5432")
	want := `PROTOCOL  INNER                  EXTERNAL               REMOTE                 STATE        AGE (s)   EXPIRES IN (s)
` + strings.Repeat(`tcp       10.20.0.2:40000        203.0.113.1:2000       192.0.2.80:5432        established  61        7380
udp       10.20.255.254:65535    203.0.113.1:65535      255.255.255.254:65535  live         0         299
`, 2) + "\n4 listed. Whose an inner address is: `sallyport attachments`.\n"
	if err != nil || out != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, out, want)
	}
	const query = "destination=192.0.2.80%3A5432&inner=10.20.0.2&limit=1024 "
	w.wantAsked("GET /v1/networks/net_1/sessions?"+query, "GET /v1/networks/net_1/sessions?after=0.77&"+query)

	w = newAdmin(t, more)
	if out, err := w.run("sessions", "net_1", "--limit", "2"); err != nil || !strings.Contains(out, "\n2 listed; there may be more: --all") {
		t.Errorf("%v\n%s", err, out)
	}
	w.wantAsked("GET /v1/networks/net_1/sessions?limit=2 ")
	w = newAdmin(t, more, more)
	if out, err := w.run("sessions", "net_1", "--limit", "1500"); err == nil || strings.Count(out, "tcp ") != 1 || !strings.Contains(err.Error(), `next "0.77"`) {
		t.Errorf("a page that leads to itself: %v\n%s", err, out)
	}
	w.wantAsked("GET /v1/networks/net_1/sessions?limit=1024 ", "GET /v1/networks/net_1/sessions?after=0.77&limit=1024 ")
	w = newAdmin(t, answer{200, `{"network":"net_1","sessions":[]}`})
	if out, err := w.run("sessions", "net_1"); err != nil || !strings.Contains(out, "\n0 listed.") {
		t.Errorf("%v\n%s", err, out)
	}
}

// In JSON a session is a line, and nothing else is on standard output.
func TestSessionsInJSON(t *testing.T) {
	w := newAdmin(t, answer{200, sessionsJSON + `,"next":"0.77"}`})
	var out, told bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetErr(&told)
	cmd.SetArgs([]string{"sessions", "net_1", "--admin", w.at, "--output", "json", "--limit", "2"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if first, _, _ := strings.Cut(out.String(), "\n"); first != sessionJSON || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("got\n%s", out.String())
	}
	if !strings.Contains(told.String(), "2 listed; there may be more") {
		t.Errorf("told %q", told.String())
	}
}

// A daemon that is busy is asked again for a while, and no longer.
func TestBusy(t *testing.T) {
	busy := answer{503, "another read-out is under way: ask again when it is over\n"}
	w := newAdmin(t, busy, answer{200, portsJSON})
	if _, err := w.run("ports", "net_1"); err != nil || w.times() != 2 {
		t.Errorf("asked %d times: %v", w.times(), err)
	}
	w = newAdmin(t, busy, busy, busy)
	l := adminListener{address: w.at, pauses: make([]time.Duration, 2)}
	err := l.read(t.Context(), adminRequest{path: "/v1/networks/net_1/ports"}, new(any))
	if err == nil || !strings.Contains(err.Error(), "under way") || !strings.Contains(err.Error(), "asked 3 times") {
		t.Errorf("asked %d times: %v", w.times(), err)
	}
	w = newAdmin(t, busy)
	l = adminListener{address: w.at, pauses: []time.Duration{time.Hour}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := l.read(ctx, adminRequest{path: "/v1/networks/net_1/ports"}, new(any)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("whoever asked went: %v", err)
	}
	var sum time.Duration
	for _, p := range busyPauses {
		sum += p
	}
	if sum > 5*time.Second {
		t.Errorf("an operator waits %v", sum)
	}
}

// Each row is what may come of a question, and what the error tells to do.
func TestReadoutErrors(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		answer answer
		args   []string
		says   string
	}{
		"network elsewhere": {answer{404, "network \"net_1\": this host does not serve that network; it serves net_2, net_3\n"}, []string{"ports", "net_1"}, "it serves net_2, net_3 (`sallyport status` names the hosts"},
		"no such path":      {answer{404, "404 page not found\n"}, []string{"sessions", "net_1"}, "it is no gateway (roles of its configuration; ask on a gateway host), or older"},
		"by a proxy":        {answer{403, "read-outs name customers' addresses: ask on the gateway host itself\n"}, []string{"ports", "net_1"}, "run this command on the gateway host"},
		"refused":           {answer{400, "top: \"10\": write less\n"}, []string{"ports", "net_1"}, "write less"},
		"without a text":    {answer{500, ""}, []string{"ports", "net_1"}, "500 Internal Server Error"},
		"no JSON":           {answer{200, "alive\n"}, []string{"ports", "net_1"}, "is it sallyportd's admin listener?"},
		"another's JSON":    {answer{200, "{}\n"}, []string{"ports", "net_1"}, "is it sallyportd's admin listener?"},
		"another's page":    {answer{200, "{}\n"}, []string{"sessions", "net_1"}, "is it sallyportd's admin listener?"},
		"half a page":       {answer{200, sessionsJSON}, []string{"sessions", "net_1"}, "unexpected EOF"},
		"nobody listens":    {answer{}, []string{"ports", "net_1", "--admin", nobody}, "is sallyportd running on this host"},
		"by a name":         {answer{}, []string{"ports", "net_1", "--admin", "localhost:9469"}, "such as 127.0.0.1:9469"},
		"no network":        {answer{}, []string{"ports"}, "accepts 1 arg"},
		"what network":      {answer{}, []string{"ports", "net/1"}, "`sallyport status` lists them"},
		"what network's":    {answer{}, []string{"sessions", "../1"}, "`sallyport status` lists them"},
		"top":               {answer{}, []string{"ports", "net_1", "--top", "1025"}, "write 1 to 1024"},
		"protocol":          {answer{}, []string{"ports", "net_1", "--destination", "192.0.2.5:1", "--protocol", "sctp"}, "tcp, udp or icmp"},
		"whose protocol":    {answer{}, []string{"ports", "net_1", "--protocol", "udp"}, "--destination: write that, too"},
		"destination":       {answer{}, []string{"ports", "net_1", "--destination", "db:5432"}, "192.0.2.5:5432 (look a name up before)"},
		"destination IPv6":  {answer{}, []string{"sessions", "net_1", "--destination", "[2001:db8::1]:5432"}, "not an IPv4 address"},
		"inner":             {answer{}, []string{"sessions", "net_1", "--inner", "ten"}, "`sallyport attachments` lists"},
		"limit":             {answer{}, []string{"sessions", "net_1", "--limit", "0"}, "--all instead"},
		"limit of all":      {answer{}, []string{"sessions", "net_1", "--limit", "5", "--all"}, "leave out one"},
		"format":            {answer{}, []string{"sessions", "net_1", "--output", "xml"}, "use table or json"},
		"format of ports":   {answer{}, []string{"ports", "net_1", "--output", "xml"}, "use table or json"},
		"names in JSON":     {answer{}, []string{"ports", "net_1", "--output", "json", "--names"}, "--names is for tables"},
	} {
		t.Run(name, func(t *testing.T) {
			var answers []answer
			if c.answer.status != 0 {
				answers = append(answers, c.answer)
			}
			w := newAdmin(t, answers...)
			args := append([]string{c.args[0], "--admin", w.at}, c.args[1:]...)
			out, err := execute(args...)
			if err == nil || !strings.Contains(err.Error(), c.says) || out != "" {
				t.Errorf("%v, printed %q", err, out)
			}
			if w.times() != len(answers) {
				t.Errorf("asked %d times", w.times())
			}
		})
	}
}

// Of what a listener at any address of this machine sees, the caller is on loopback.
func TestAskedFromLoopback(t *testing.T) {
	from := make(chan string, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from <- r.RemoteAddr
		fmt.Fprint(w, `{"network":"net_1","ips":[]}`)
	}))
	defer s.Close()
	l := adminListener{address: "0.0.0.0" + s.URL[strings.LastIndex(s.URL, ":"):]} // as of admin.listen
	if err := l.read(t.Context(), adminRequest{path: "/"}, new(any)); err != nil {
		t.Fatal(err)
	}
	if a := netip.MustParseAddrPort(<-from); a.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("asked from %v", a)
	}
}
