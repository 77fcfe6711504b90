package spec

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

// maxID is the longest ID or label, in bytes.
const maxID = 64

// ValidID reports whether s may be an ID or the name of an environment: 1 to 64
// letters, digits, "_" and "-", the first a letter or digit. It may stand in a
// path, a key or a file name as it is.
func ValidID(s string) bool {
	return validToken(s, func(c byte) bool { return isLower(c) || 'A' <= c && c <= 'Z' }, "_-")
}

// ValidLabel reports whether s may name a region or a host: 1 to 64 lower-case
// letters, digits, "-" and ".", the first a letter or digit.
func ValidLabel(s string) bool { return validToken(s, isLower, "-.") }

// ValidRuntime reports whether s may name a runtime: 1 to 64 lower-case letters,
// digits, "-", "_" and ".", the first a letter or digit, such as "nodejs" or "python3.12".
func ValidRuntime(s string) bool { return validToken(s, isLower, "-_.") }

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }

func validToken(s string, letter func(byte) bool, inner string) bool {
	if len(s) == 0 || len(s) > maxID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if letter(c) || '0' <= c && c <= '9' {
			continue
		}
		if i == 0 || !isOneOf(c, inner) {
			return false
		}
	}
	return true
}

func isOneOf(c byte, set string) bool {
	for i := range len(set) {
		if set[i] == c {
			return true
		}
	}
	return false
}

// checkName says what is wrong with a name, or returns nil: a name is at most
// maxName bytes of UTF-8 without control characters.
func checkName(s string) error {
	if len(s) > maxName {
		return fmt.Errorf("the name has %d bytes, more than the %d that are allowed", len(s), maxName)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("the name %q is not UTF-8", s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("the name %q holds the character %U, which does not print", s, r)
		}
	}
	return nil
}
