package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// A gateway host in another process attaches like one in this.
func TestFollowOverHTTP(t *testing.T) {
	s := newStore(t, func(c *StoreConfig) { c.AcknowledgeTimeout = time.Minute })
	c, _ := serve(t, s)
	g := startGateway(t, c)
	resp, err := c.Attach(context.Background(), request(1))
	if err != nil {
		t.Fatal(err)
	}
	a := resp.Attachment
	g.mu.Lock()
	if got := g.view.attached[a.ID]; got != a || !reflect.DeepEqual(*g.view.state, *s.state) || g.view.at != at(s, 2) {
		t.Errorf("when Attach returned, the gateway knew %+v at %+v", got, g.view.at)
	}
	g.mu.Unlock()
	if err := c.Detach(context.Background(), a.ID); err != nil {
		t.Fatal(err)
	}
	if b, err := c.Attach(context.Background(), request(2)); err != nil {
		t.Error(err)
	} else if g.mu.Lock(); len(g.view.attached) != 1 || g.view.attached[b.Attachment.ID] != b.Attachment {
		t.Errorf("the gateway knows %+v", g.view.attached)
		g.mu.Unlock()
	} else {
		g.mu.Unlock()
	}
}

// changing serves one store after another under one address, as a control plane
// does that is started anew.
type changing struct{ now chan http.Handler }

func (c changing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := <-c.now
	c.now <- h
	h.ServeHTTP(w, r)
}

func TestFollowAcrossStores(t *testing.T) {
	first, second := newStore(t, nil), newStore(t, nil)
	h := changing{make(chan http.Handler, 1)}
	h.now <- NewServer(first, ServerConfig{Token: token})
	srv := httptest.NewServer(h)
	defer srv.Close()
	c, err := api.NewClient(api.ClientConfig{Address: srv.URL, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()

	for _, s := range []*Store{first, second} { // both are at the same revision
		if _, _, err := s.enter(request(1)); err != nil {
			t.Fatal(err)
		}
	}
	u, err := c.Next(ctx, spec.Cursor{})
	if err != nil || !u.Full || u.Cursor() != at(first, 2) || !reflect.DeepEqual(u.Attached, first.full().Attached) {
		t.Fatalf("got %+v, %v", u, err)
	}
	<-h.now
	h.now <- NewServer(second, ServerConfig{Token: token})
	// What the first store was told says nothing to the second.
	if err := c.Acknowledge(ctx, "gw-a", u.Cursor()); err != nil || second.Status().Regions[0].Hosts[0].Revision != 0 {
		t.Errorf("%v, %+v", err, second.Status().Regions)
	}
	u, err = c.Next(ctx, u.Cursor())
	if err != nil || !u.Full || u.State == nil || u.Cursor() != at(second, 2) || !reflect.DeepEqual(u.Attached, second.full().Attached) {
		t.Errorf("got %+v, %v", u, err)
	}
}

// A sandbox that ends while the control plane does not know it ends at the
// gateways that do, and stays ended.
func TestDetachOfAnUnknown(t *testing.T) {
	s := newStore(t, nil)
	c, _ := serve(t, s)
	ctx := context.Background()
	e, _, err := s.enter(request(1)) // revision 2
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // it is told once
		if err := c.Detach(ctx, "att-lost"); code(err) != api.CodeNotFound {
			t.Errorf("got %v", err)
		}
	}
	if err := c.Detach(ctx, e.ID); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"a b", strings.Repeat("x", 65)} {
		if err := c.Detach(ctx, bad); code(err) != api.CodeNotFound {
			t.Errorf("got %v", err)
		}
	}
	gone := []string{"att-lost", e.ID}
	for name, tc := range map[string]struct {
		after spec.Cursor
		full  bool
		want  []string
	}{
		"follower":             {at(s, 2), false, gone},
		"of another store":     {spec.Cursor{Store: "before", Revision: 70}, true, gone},
		"without anything yet": {spec.Cursor{}, true, nil},
		"one behind":           {at(s, 3), false, gone[1:]},
	} {
		u, err := c.Next(ctx, tc.after)
		if err != nil || u.Full != tc.full || u.Cursor() != at(s, 4) || !reflect.DeepEqual(u.Detached, tc.want) || len(u.Attached) != 0 {
			t.Errorf("%s: got %+v, %v", name, u, err)
		}
	}
	lost := request(1)
	lost.Resume = &api.Resume{ID: "att-lost", InnerAddress: addr("10.20.0.50")}
	if _, err := c.Attach(ctx, lost); code(err) != api.CodeConflict {
		t.Errorf("it came back: %v", err)
	}

	// One that was attached again and ended, both unseen, is told of; one whose attach
	// came to nothing is not: it may be tried again.
	again := newStore(t, nil)
	for _, id := range []string{"att-ended", "att-tried"} {
		req := request(1)
		req.Resume = &api.Resume{ID: id, InnerAddress: addr("10.20.0.50")}
		e, _, err := again.enter(req)
		if err != nil {
			t.Fatal(err)
		}
		if again.withdraw(e); id == "att-ended" {
			if _, _, err := again.enter(req); err != nil {
				t.Fatal(err)
			}
			if err := again.Detach(id); err != nil {
				t.Error(err)
			}
		}
	}
	if u := again.since(at(again, 1)); !reflect.DeepEqual(slices.Compact(u.Detached), []string{"att-ended"}) || len(u.Attached) != 0 {
		t.Errorf("got %+v", u)
	}

	few := newStore(t, func(c *StoreConfig) { c.MaxRevoked, c.History = 3, 2 })
	for i := range 8 {
		if err := few.Detach(fmt.Sprint("att-", i)); code(err) != api.CodeNotFound {
			t.Error(err)
		}
	}
	for _, behind := range []spec.Cursor{{Store: "before", Revision: 1}, at(few, 1)} {
		if u := few.since(behind); !u.Full || !reflect.DeepEqual(u.Detached, []string{"att-5", "att-6", "att-7"}) {
			t.Errorf("after %v: got %v", behind, u.Detached)
		}
	}
}

func TestNextOverHTTPWaits(t *testing.T) {
	s := newStore(t, nil)
	c, _ := serve(t, s)
	for name, tc := range map[string]struct {
		ctx  func() (context.Context, context.CancelFunc)
		want error
	}{
		"deadline": {func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.Background(), 30*time.Millisecond)
		}, context.DeadlineExceeded},
		"past": {func() (context.Context, context.CancelFunc) {
			return context.WithDeadline(context.Background(), time.Unix(0, 0))
		}, context.DeadlineExceeded},
		"cancelled": {func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(20*time.Millisecond, cancel)
			return ctx, cancel
		}, context.Canceled},
		"cancelled with a deadline": {func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			time.AfterFunc(20*time.Millisecond, cancel)
			return ctx, cancel
		}, context.Canceled},
	} {
		ctx, cancel := tc.ctx()
		if u, err := c.Next(ctx, at(s, 1)); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %+v, %v", name, u, err)
		}
		cancel()
	}
	got := make(chan spec.Update, 1)
	go func() {
		u, err := c.Next(context.Background(), at(s, 1))
		if err != nil {
			t.Error(err)
		}
		got <- u
	}()
	if err := s.Replace(state()); err != nil {
		t.Fatal(err)
	}
	if u := <-got; u.Cursor() != at(s, 2) || u.Full || u.State == nil {
		t.Errorf("got %+v", u)
	}
}

// call makes one request of a handler, with the token.
func call(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestUpdatesAreHeld(t *testing.T) {
	s := newStore(t, nil)
	h := NewServer(s, ServerConfig{Token: token})
	here := "/v1/gateway/updates?store=" + s.id + "&after=1"
	for _, path := range []string{here, here + "&wait=0", here + "&wait=20"} {
		start := time.Now()
		if w := call(h, "GET", path, ""); w.Code != http.StatusNoContent || w.Body.Len() != 0 {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
		if held := time.Since(start); strings.HasSuffix(path, "20") && held < 20*time.Millisecond {
			t.Errorf("%s: held for %v only", path, held)
		}
	}
	// Whatever is new is there at once, however long one would wait.
	for _, path := range []string{"/v1/gateway/updates", "/v1/gateway/updates?wait=3600000", "/v1/gateway/updates?store=lost&after=1&wait=30000"} {
		w := call(h, "GET", path, "")
		var u spec.Update
		if err := json.Unmarshal(w.Body.Bytes(), &u); err != nil || w.Code != 200 || !u.Full || u.Cursor() != at(s, 1) {
			t.Errorf("%s: got %d %s, %v", path, w.Code, w.Body, err)
		}
	}
	if _, wait, err := parseFollow(map[string][]string{"wait": {"4000000000"}}); err != nil || wait != api.MaxWait {
		t.Errorf("a wait of weeks: got %v, %v", wait, err)
	}
}

// Each row is a call of a gateway host and what the server says to it.
func TestGatewayCallsAreRefused(t *testing.T) {
	s := newStore(t, nil)
	h := NewServer(s, ServerConfig{Token: token})
	reportOf := func(network, key string) string {
		return fmt.Sprintf(`{"host":"gw-a","region":"iad1","networks":[{"id":%q,"publicKey":%q}]}`, network, key)
	}
	twice := strings.Replace(reportOf("net_1", key(1)), "[", `[{"id":"net_1","publicKey":"`+key(1)+`"},`, 1)
	for _, tc := range []struct {
		name, method, path, body string
		status                   int
		code, says               string
	}{
		{"store", "GET", "updates?store=a%2Fb&after=1", "", 400, api.CodeBadRequest, "store"},
		{"revision", "GET", "updates?store=a&after=-1", "", 400, api.CodeBadRequest, "after"},
		{"revision of no store", "GET", "updates?after=7", "", 400, api.CodeBadRequest, "revision 7"},
		{"wait", "GET", "updates?wait=1s", "", 400, api.CodeBadRequest, "milliseconds"},
		{"wait below 0", "GET", "updates?wait=-5", "", 400, api.CodeBadRequest, "milliseconds"},
		{"parameter", "GET", "updates?from=1", "", 400, api.CodeBadRequest, "from"},
		{"method", "POST", "updates", "", 405, api.CodeMethod, "GET"},
		{"method of an acknowledgement", "GET", "acknowledgements", "", 405, api.CodeMethod, "POST"},
		{"method of a report", "GET", "reports", "", 405, api.CodeMethod, "POST"},
		{"no such call", "GET", "nothing", "", 404, api.CodeNotFound, "/v1/gateway"},
		{"acknowledges nothing", "POST", "acknowledgements", `{"host":"gw-a"}`, 400, api.CodeBadRequest, "revision 0"},
		{"acknowledges no store", "POST", "acknowledgements", `{"host":"gw-a","revision":3}`, 400, api.CodeBadRequest, "revision 3"},
		{"another region's host", "POST", "acknowledgements", `{"host":"gw-b","store":"x","revision":1}`, 404, api.CodeNotFound, `no host "gw-b"`},
		{"acknowledgement cut short", "POST", "acknowledgements", `{"host":`, 400, api.CodeBadRequest, "ends before"},
		{"acknowledgement too large", "POST", "acknowledgements", `{"host":"` + strings.Repeat("x", api.MaxRequest) + `"}`, 413, api.CodeTooLarge, "64 KiB"},
		{"report of an unknown host", "POST", "reports", `{"host":"gw-x","region":"iad1"}`, 404, api.CodeNotFound, `no host "gw-x"`},
		{"report of another region", "POST", "reports", `{"host":"gw-b","region":"fra1"}`, 421, api.CodeWrongRegion, `"fra1"`},
		{"report without an ID", "POST", "reports", reportOf("", key(1)), 400, api.CodeBadRequest, "networks[0].id"},
		{"report without a key", "POST", "reports", reportOf("net_1", ""), 400, api.CodeBadRequest, "networks[0].publicKey"},
		{"network twice", "POST", "reports", twice, 400, api.CodeBadRequest, "twice"},
		{"site without a key", "POST", "reports", strings.Replace(reportOf("net_1", key(1)), `"id"`, `"site":{},"id"`, 1), 400, api.CodeBadRequest, "networks[0].site.publicKey"},
		{"peering without an ID", "POST", "reports", strings.Replace(reportOf("net_1", key(1)), `"id"`, `"site":{"publicKey":"`+key(2)+`","peerings":[{}]},"id"`, 1), 400, api.CodeBadRequest, "peerings[0].id"},
	} {
		w := call(h, tc.method, "/v1/gateway/"+tc.path, tc.body)
		var body api.ErrorBody
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Error == nil {
			t.Errorf("%s: not an error of the API: %s", tc.name, w.Body)
		} else if w.Code != tc.status || body.Error.Code != tc.code || !strings.Contains(body.Error.Message, tc.says) {
			t.Errorf("%s: got %d %v", tc.name, w.Code, body.Error)
		}
	}
	if h := s.Status().Regions[0].Hosts[0]; h.Revision != 0 || !h.Reported.IsZero() {
		t.Errorf("something was taken: %+v", h)
	}
	// A host of a newer version may say more.
	for path, body := range map[string]string{
		"reports":          `{"host":"gw-a","region":"iad1","weather":"fine"}`,
		"acknowledgements": `{"host":"gw-a","store":"` + s.id + `","revision":1,"weather":"fine"}`,
	} {
		if w := call(h, "POST", "/v1/gateway/"+path, body); w.Code != http.StatusNoContent {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
	}
	if h := s.Status().Regions[0].Hosts[0]; h.Revision != 1 || !h.Reported.Equal(epoch) {
		t.Errorf("got %+v", h)
	}
}

// manyNetworks is what a host reports that has many networks, each with every
// reason for a drop.
func manyNetworks(networks int) spec.HostReport {
	r := spec.HostReport{Host: "gw-a", Region: "iad1"}
	drops := make(map[string]uint64)
	for i := range 40 {
		drops[fmt.Sprintf("a_reason_with_a_long_name_%d", i)] = 1 << 60
	}
	for i := range networks {
		r.Networks = append(r.Networks, spec.NetworkReport{
			ID: fmt.Sprintf("net_%060d", i), PublicKey: key(i + 1), Endpoint: netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:51820"),
			Peers: 65536, Sessions: [2]int{1 << 20, 1 << 20}, Drops: drops,
			Egress: spec.Traffic{Packets: 1 << 60, Bytes: 1 << 60}, Ingress: spec.Traffic{Packets: 1 << 60, Bytes: 1 << 60},
		})
	}
	return r
}

func TestLargeReport(t *testing.T) {
	s := newStore(t, nil)
	c, _ := serve(t, s)
	const networks = 100
	r := manyNetworks(networks)
	body, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(body) <= api.MaxRequest || len(body)*(10_000/networks) > api.MaxReport {
		t.Errorf("%d networks take %d bytes: 10,000 have to fit", networks, len(body))
	}
	if err := c.Report(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	if got := s.hosts["gw-a"].networks; len(got) != networks || !reflect.DeepEqual(got[r.Networks[77].ID], r.Networks[77]) {
		t.Errorf("%d networks arrived", len(got))
	}
	// What says that it is too large is not even read; what does not say it, up to the limit.
	h := NewServer(s, ServerConfig{Token: token})
	for path, tc := range map[string]struct {
		length int64
		says   string
	}{
		reportsPath:                    {api.MaxReport + 1, "65536 KiB"},
		"/v1/gateway/acknowledgements": {-1, "64 KiB"},
		"/v1/attachments":              {-1, "64 KiB"},
	} {
		req := httptest.NewRequest("POST", path, strings.NewReader(`{"host":"`+strings.Repeat("x", api.MaxRequest)+`"}`))
		req.Header.Set("Authorization", "Bearer "+token)
		req.ContentLength = tc.length
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), tc.says) {
			t.Errorf("%s: got %d %.200s", path, w.Code, w.Body)
		}
	}
}
