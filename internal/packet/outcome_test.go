package packet

import (
	"regexp"
	"testing"
)

func TestOutcomeNames(t *testing.T) {
	name := regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)
	seen := map[string]Outcome{}
	for o := range Outcomes() {
		s := o.String()
		if !name.MatchString(s) {
			t.Errorf("outcome %d: name %q", o, s)
		}
		if other, twice := seen[s]; twice {
			t.Errorf("outcomes %d and %d are both %q", o, other, s)
		}
		seen[s] = o
	}
	if len(seen) != NumOutcomes {
		t.Errorf("%d names of %d", len(seen), NumOutcomes)
	}
	for o, want := range map[Outcome]string{Unspecified: "unspecified", Pass: "pass", TTLExpired: "ttl_expired", NotIPv4: "not_ipv4", Closed: "closed", 255: "unknown"} {
		if o.String() != want {
			t.Errorf("%d is %q, want %q", o, o, want)
		}
	}
	for range Outcomes() {
		break // an iterator that is left early must not go on
	}
}
