package control

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// ServerConfig is what a server is made of.
type ServerConfig struct {
	// Token is the bearer token; with an empty one every call is refused.
	Token string
	// Log gets what fails on our side; nil: nobody.
	Log *slog.Logger
	// Patience is how long a caller may take to send a body, and to take an answer;
	// 0: 30 s.
	Patience time.Duration
}

// server serves the API from a store.
type server struct {
	store    *Store
	log      *slog.Logger
	patience time.Duration
	// token is the digest of the token: digests have one length, so that comparing
	// them tells nothing of the token's.
	token [sha256.Size]byte
	mux   *http.ServeMux
}

// NewServer returns the handler of the control API; see [api]. Who serves it
// listens with [Listen]: on a unix socket or the loopback interface.
func NewServer(store *Store, cfg ServerConfig) http.Handler {
	s := &server{
		store:    store,
		log:      cfg.Log,
		patience: cfg.Patience,
		token:    sha256.Sum256([]byte(cfg.Token)),
		mux:      http.NewServeMux(),
	}
	setDefault(&s.patience, 30*time.Second)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.mux.HandleFunc("POST /v1/attachments", s.attach)
	s.mux.HandleFunc("GET /v1/attachments", s.list)
	s.mux.HandleFunc("DELETE /v1/attachments/{id}", s.detach)
	s.mux.HandleFunc("GET /v1/status", s.status)
	s.mux.HandleFunc("GET /v1/peerings", s.peerings)
	s.mux.HandleFunc("GET /v1/peerings/{id}", s.peering)
	s.mux.HandleFunc("GET /v1/gateway/updates", s.updates)
	s.mux.HandleFunc("POST /v1/gateway/acknowledgements", s.acknowledge)
	s.mux.HandleFunc("POST "+reportsPath, s.report)
	s.mux.HandleFunc("/v1/attachments", s.otherMethod("GET, POST"))
	s.mux.HandleFunc("/v1/attachments/{id}", s.otherMethod("DELETE"))
	s.mux.HandleFunc("/v1/status", s.otherMethod("GET"))
	s.mux.HandleFunc("/v1/peerings", s.otherMethod("GET"))
	s.mux.HandleFunc("/v1/peerings/{id}", s.otherMethod("GET"))
	s.mux.HandleFunc("/v1/gateway/updates", s.otherMethod("GET"))
	s.mux.HandleFunc("/v1/gateway/acknowledgements", s.otherMethod("POST"))
	s.mux.HandleFunc(reportsPath, s.otherMethod("POST"))
	s.mux.HandleFunc("/", s.notFound)
	return s
}

// ServeHTTP implements http.Handler. Whoever sends a body slowly, or does not take an
// answer, is let go: what is held for it is many MiB where many are attached.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 { // else nothing is read any more but that the caller has gone
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.patience))
	}
	if err := s.authorize(r); err != nil {
		w.Header().Set("Connection", "close") // its body is not waited for
		s.fail(w, r, err)
		return
	}
	limit := int64(api.MaxRequest)
	if r.URL.Path == reportsPath {
		limit = api.MaxReport
	}
	if r.ContentLength > limit {
		s.fail(w, r, tooLarge(limit))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, limit)
	s.mux.ServeHTTP(w, r)
}

func (s *server) authorize(r *http.Request) error {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	// Whoever sends none is turned away here, also where ours is empty.
	if token == "" || !strings.EqualFold(scheme, "Bearer") {
		return &api.Error{Status: http.StatusUnauthorized, Code: api.CodeUnauthorized,
			Message: "the request has no token; send \"Authorization: Bearer TOKEN\" with the one in the file that api.token_file names"}
	}
	digest := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(digest[:], s.token[:]) != 1 {
		return &api.Error{Status: http.StatusForbidden, Code: api.CodeForbidden,
			Message: "the token is not that of this control plane; use the one in the file that its api.token_file names"}
	}
	return nil
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	var req api.AttachRequest
	err := s.readBody(w, r, &req, knownFields)
	var resp api.AttachResponse
	if err == nil {
		resp, err = s.store.Attach(r.Context(), req)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.log.Debug("attached", "id", resp.Attachment.ID, "network", resp.Attachment.Network, "bypass", resp.Attachment.Bypass)
	s.answer(w, http.StatusCreated, resp)
}

func (s *server) detach(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if err := s.store.Detach(id); err != nil {
		s.fail(w, r, err)
		return
	}
	s.log.Debug("detached", "id", id)
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) list(w http.ResponseWriter, r *http.Request) {
	after, limit := "", api.MaxPage
	for name, values := range r.URL.Query() {
		value := values[len(values)-1]
		switch name {
		case "after":
			if after = value; after != "" && !spec.ValidID(after) {
				s.fail(w, r, badRequest("after: %q is not the ID of an attachment", after))
				return
			}
		case "limit":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > api.MaxPage {
				s.fail(w, r, badRequest("limit: %q is not a number from 1 to %d", value, api.MaxPage))
				return
			}
			limit = n
		default:
			s.fail(w, r, badRequest("%s: unknown parameter; there are after and limit", name))
			return
		}
	}
	s.answer(w, http.StatusOK, s.store.List(after, limit))
}

func (s *server) status(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, http.StatusOK, s.store.Status())
}

func (s *server) peerings(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, http.StatusOK, s.store.Peerings())
}

func (s *server) peering(w http.ResponseWriter, r *http.Request) {
	status, err := s.store.Peering(r.PathValue("id"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, http.StatusOK, status)
}

func (s *server) otherMethod(allowed string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allowed)
		s.fail(w, r, &api.Error{Status: http.StatusMethodNotAllowed, Code: api.CodeMethod,
			Message: fmt.Sprintf("%s does not take %s; use %s", r.URL.Path, r.Method, allowed)})
	}
}

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	s.fail(w, r, &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound,
		Message: fmt.Sprintf("there is nothing at %s; the API has /v1/attachments, /v1/peerings, /v1/status and /v1/gateway", r.URL.Path)})
}

// fields says which fields a body may have.
type fields bool

const (
	// knownFields refuses what is not known: it is a mistake of who wrote the request.
	knownFields fields = false
	// anyFields passes over it: gateway hosts of a newer version say more.
	anyFields fields = true
)

// readBody decodes the body, which is one JSON object.
func (s *server) readBody(w http.ResponseWriter, r *http.Request, into any, may fields) error {
	err := decodeBody(r, into, may)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return badRequest("the body did not come within %v; send it at once", s.patience)
	}
	// The call may take its time from here on.
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	return err
}

func decodeBody(r *http.Request, into any, may fields) error {
	d := json.NewDecoder(r.Body)
	if may == knownFields {
		d.DisallowUnknownFields()
	}
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			return badRequest("the body has more than one JSON value; send one object")
		}
		return nil
	}
	var large *http.MaxBytesError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.As(err, &large):
		return tooLarge(large.Limit)
	case errors.As(err, &kind):
		return badRequest("%s: a JSON %s cannot be read as %v", kind.Field, kind.Value, kind.Type)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return badRequest("the body ends before its JSON does; send one object")
	}
	// encoding/json has no type for an unknown field, but names it in the text.
	return badRequest("body: %s", strings.TrimPrefix(err.Error(), "json: "))
}

func tooLarge(limit int64) error {
	return &api.Error{Status: http.StatusRequestEntityTooLarge, Code: api.CodeTooLarge,
		Message: fmt.Sprintf("the body has more than %d KiB", limit>>10)}
}

func (s *server) answer(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		s.log.Error("an answer of the control API could not be encoded", "error", err)
		status, b = http.StatusInternalServerError, []byte(`{"error":{"code":"internal","message":"the answer could not be encoded; see the log of sallyportd"}}`)
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.patience))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n')) // an error means that the caller has gone, and nobody is left to be told
}

// fail answers with an error. One that is not of the API is ours: the caller
// learns that there was one, the log which.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var known *api.Error
	switch {
	case errors.As(err, &known):
	case r.Context().Err() != nil: // the caller has gone, or the server is stopping
		known = &api.Error{Status: http.StatusServiceUnavailable, Code: api.CodeStopping, Message: "the control plane is stopping; ask again"}
	default:
		s.log.Error("a call of the control API failed", "method", r.Method, "path", r.URL.Path, "error", err)
		known = &api.Error{Status: http.StatusInternalServerError, Code: api.CodeInternal, Message: "the control plane failed; see the log of sallyportd"}
	}
	if known.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="sallyport"`)
	}
	s.answer(w, known.Status, api.ErrorBody{Error: known})
}
