// Package deploy_test holds what is deployed against the repository that it is
// built from.
package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// root is the repository's.
const root = ".."

// instruction finds the arguments of an instruction of a Containerfile.
func instruction(text, name string) (all []string) {
	for _, m := range regexp.MustCompile(`(?m)^`+name+` (.+)$`).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// An image is built with the module's Go, of files that exist, and starts its
// program the way the unit does.
func TestImagesAgreeWithUnits(t *testing.T) {
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, filepath.Join(root, "go.mod")))
	if version == nil {
		t.Fatal("go.mod names no version of Go")
	}
	for _, program := range []string{"sallyportd", "sallyport-sidecar"} {
		image := read(t, filepath.Join("container", program+".Containerfile"))
		if from := instruction(image, "FROM"); len(from) != 2 || !strings.HasPrefix(from[0], "golang:"+version[1]+"-") || from[1] != "scratch" {
			t.Errorf("%s: built from %v, want golang:%s and scratch", program, from, version[1])
		}
		for _, args := range instruction(image, "COPY") {
			if strings.HasPrefix(args, "--from=") {
				continue
			}
			words := strings.Fields(args)
			for _, source := range words[:len(words)-1] {
				if _, err := os.Stat(filepath.Join(root, source)); err != nil {
					t.Errorf("%s: COPY %s: %v", program, args, err)
				}
			}
		}
		if !strings.Contains(image, "./cmd/"+program) {
			t.Errorf("%s: the image builds another program", program)
		}
		start := regexp.MustCompile(`(?m)^ExecStart=(.+)$`).FindStringSubmatch(read(t, filepath.Join("systemd", program+".service")))
		if start == nil {
			t.Fatalf("%s: the unit starts nothing", program)
		}
		argv := regexp.MustCompile(`"([^"]*)"`).FindAllStringSubmatch(strings.Join(append(instruction(image, "ENTRYPOINT"), instruction(image, "CMD")...), " "), -1)
		var words []string
		for _, w := range argv {
			words = append(words, w[1])
		}
		if got := strings.Join(words, " "); got != start[1] {
			t.Errorf("%s: the image starts %q, the unit %q", program, got, start[1])
		}
		if user := instruction(image, "USER"); len(user) != 1 || strings.HasPrefix(user[0], "0") || user[0] == "root" {
			t.Errorf("%s: the image runs as %v", program, user)
		}
		for _, f := range []string{image, read(t, filepath.Join("systemd", program+".service"))} {
			if !strings.Contains(f, "/etc/sallyport/"+program+".yaml") {
				t.Errorf("%s: not with the reference configuration", program)
			}
		}
	}
}
