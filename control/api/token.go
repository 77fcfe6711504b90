package api

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// The shortest token that is taken, and the most that is read of a file that is
// said to hold one, in bytes.
const (
	minToken = 16
	maxToken = 4096
)

// ReadTokenFile reads the API's bearer token from a file, without the white space
// around it. An error names the file, never what it holds.
func ReadTokenFile(name string) (string, error) { return readToken("API", name) }

// ReadAdminTokenFile reads the token of the daemon's admin listener, as
// [ReadTokenFile] does the API's.
func ReadAdminTokenFile(name string) (string, error) { return readToken("admin", name) }

// readToken reads a token from a file; which says which of the tokens it is.
func readToken(which, name string) (string, error) {
	f, err := os.Open(name)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("read the %s token: this user may not; run this as the file's owner: %w", which, err)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("read the %s token: name the file that holds it, the same text for sallyportd and who calls it: %w", which, err)
	case err != nil:
		return "", fmt.Errorf("read the %s token: %w", which, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("read the %s token: %w", which, err)
	}
	if len(b) > maxToken {
		return "", fmt.Errorf("%s has more than %d bytes; is it the file with the %s token?", name, maxToken, which)
	}
	token := strings.TrimSpace(string(b))
	if err := checkToken(which, token); err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	if len(token) < minToken {
		return "", fmt.Errorf("the %s token in %s has %d characters; write at least %d", which, name, len(token), minToken)
	}
	return token, nil
}

// checkToken says why a text cannot be a token: it stands in an HTTP header.
func checkToken(which, token string) error {
	if token == "" {
		return fmt.Errorf("the %s token is empty; give the one that sallyportd was started with", which)
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return fmt.Errorf("the %s token holds a space or another character that is not printable ASCII; give it without line breaks", which)
		}
	}
	return nil
}
