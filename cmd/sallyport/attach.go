package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/console"
)

func attachCommand(g *globals) *cobra.Command {
	req := api.AttachRequest{}
	var kind, format string
	var again resume
	cmd := &cobra.Command{
		Use:   "attach --project ID --environment NAME --region NAME [--kind KIND] [--runtime RUNTIME] [--public-key KEY] [--resume ID --inner-address ADDRESS] [--format FORMAT]",
		Short: "Attach a sandbox and say where its tunnel goes",
		Long: `Attach a sandbox and say where its tunnel goes.

Workers do this through their sidecar. By hand it is for stock WireGuard clients
and for looking around: the command returns when the gateway expects the key.

Without --public-key a key pair is made. Its private key is printed now and never
again; nothing keeps it.

With --format wg-quick the text is a configuration for a stock WireGuard client,
which is the sandbox then; it holds the private key.

A control plane that was started anew does not know who was attached. Sidecars
attach their sandboxes again by themselves; for a stock client, --public-key,
--resume and --inner-address give it what it had.`,
		Example: `  sallyport attach --project prj_shop --environment production --region iad1
  (umask 077; sallyport attach --project prj_shop --environment production --region iad1 --format wg-quick > /etc/wireguard/shop.conf)`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.checkFormat(format); err != nil {
				return err
			}
			req.Kind = spec.Kind(kind)
			var err error
			if req.Resume, err = again.read(req.PublicKey); err != nil {
				return err
			}
			return g.call(cmd, func(ctx context.Context, c *api.Client) error {
				return attach(ctx, c, req, printer{w: cmd.OutOrStdout(), json: g.output == "json", wgQuick: format == formatWGQuick, resumed: req.Resume != nil})
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Project, "project", "", "`ID` of the project (needed)")
	f.StringVar(&req.Environment, "environment", "", "`NAME` of the project's environment (needed)")
	f.StringVar(&kind, "kind", string(spec.KindFunction), "`KIND` of sandbox: function or build")
	f.StringVar(&req.Runtime, "runtime", spec.RuntimeNodeJS, "`RUNTIME` of the sandbox: nodejs, python, go, ruby, edge or another")
	f.StringVar(&req.Region, "region", "", "`NAME` of the region that the sandbox runs in (needed)")
	f.StringVar(&req.PublicKey, "public-key", "", "WireGuard public `KEY` of the worker, in base64 (default: one is made)")
	f.StringVar(&again.id, "resume", "", "`ID` of the attachment that the sandbox had before the control plane was started anew")
	f.StringVar(&again.inner, "inner-address", "", "inner `ADDRESS` that it had; with --resume")
	f.StringVar(&format, "format", formatTable, "`FORMAT` of what is printed: table, or wg-quick for a stock client's configuration")
	for _, name := range []string{"project", "environment", "region"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flags are defined above
		}
	}
	return cmd
}

// resume is what an attachment was, as the flags say it.
type resume struct{ id, inner string }

// read checks the flags; nil: none is set. It takes the key of before to be the
// same sandbox.
func (r resume) read(key string) (*api.Resume, error) {
	if r == (resume{}) {
		return nil, nil
	}
	if !spec.ValidID(r.id) {
		return nil, fmt.Errorf("--resume: %q is not the ID of an attachment; the client's configuration names it", r.id)
	}
	inner, err := netip.ParseAddr(r.inner)
	if err != nil || !inner.Is4() {
		return nil, fmt.Errorf("--inner-address: %q is not the IPv4 address that the sandbox had; its configuration names it (Address)", r.inner)
	}
	if key == "" {
		return nil, errors.New("--resume needs --public-key, the one that the sandbox had: with a new one it would be another")
	}
	return &api.Resume{ID: r.id, InnerAddress: inner}, nil
}

// printer prints an answer in the format that was asked for.
type printer struct {
	w             io.Writer
	json, wgQuick bool
	resumed       bool // the attachment is one from before
}

// attached is what attach prints: the answer, and the key if one was made.
type attached struct {
	api.AttachResponse
	PrivateKey string `json:"privateKey,omitempty"`
}

func attach(ctx context.Context, c *api.Client, req api.AttachRequest, p printer) error {
	private := ""
	if req.PublicKey == "" {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return fmt.Errorf("make a WireGuard key: %w", err)
		}
		private = base64.StdEncoding.EncodeToString(k.Bytes())
		req.PublicKey = base64.StdEncoding.EncodeToString(k.PublicKey().Bytes())
	} else if err := spec.CheckPublicKey(req.PublicKey); err != nil {
		return fmt.Errorf("--public-key: %w", err)
	}
	resp, err := c.Attach(ctx, req)
	if err != nil {
		return explain(err)
	}
	if resp.Attachment.Bypass != "" {
		private = "" // there is no tunnel for it
	}
	if p.wgQuick {
		return attachWGQuick(ctx, c, resp, private, p)
	}
	if p.json {
		return console.JSON(p.w, attached{AttachResponse: resp, PrivateKey: private})
	}
	return attachTable(resp, private).Print(p.w)
}

// attachWGQuick prints a stock client's configuration. Where there can be none, the
// attachment is of no use, and is ended, unless it is one from before.
func attachWGQuick(ctx context.Context, c *api.Client, resp api.AttachResponse, private string, p printer) error {
	text, err := sandboxConfig(resp, private)
	if err == nil {
		err = text.print(p.w)
	}
	if err == nil || p.resumed {
		return err
	}
	if detach := c.Detach(ctx, resp.Attachment.ID); detach != nil {
		return fmt.Errorf("%w; and %s is still attached: %w", err, resp.Attachment.ID, detach)
	}
	return err
}

func attachTable(resp api.AttachResponse, private string) *console.Table {
	a, n := resp.Attachment, resp.Network
	t := &console.Table{}
	t.Row("ID", a.ID)
	if a.Bypass != "" {
		t.Row("BYPASS", a.Bypass)
		return t
	}
	t.Row("NETWORK", titled(n.ID, n.Name))
	t.Row("REGION", n.Region)
	t.Row("INNER ADDRESS", a.Inner)
	t.Row("WORKER ADDRESS", a.Worker)
	t.Row("ADDRESS OF THE PAIR", a.Egress)
	t.Row("PAIR", pairText(n.Pair))
	t.Row("DNS", joined(n.DNS))
	t.Row("MTU", n.MTU)
	for _, gw := range resp.Gateways {
		name := strings.ToUpper(string(gw.Role)) + " GATEWAY"
		t.Row(name, gw.Host)
		t.Row(name+" ENDPOINT", gw.Endpoint)
		t.Row(name+" PUBLIC KEY", gw.PublicKey)
	}
	if resp.Passive != nil {
		t.Row("PASSIVE REGION", resp.Passive.Region)
	}
	t.Row("PUBLIC KEY", a.PublicKey)
	if private != "" {
		t.Row("PRIVATE KEY (shown once)", private)
	}
	return t
}

func detachCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "detach ID ...",
		Short:   "End attachments: the sandboxes' traffic stops",
		Example: "  sallyport detach att-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				if !spec.ValidID(id) {
					return fmt.Errorf("%q is not the ID of an attachment, and nothing was detached; `sallyport attachments` lists them", id)
				}
			}
			var all []error
			for _, id := range args {
				all = append(all, g.detach(cmd, id))
			}
			return errors.Join(all...)
		},
	}
}

// detach ends one attachment and says so.
func (g *globals) detach(cmd *cobra.Command, id string) error {
	return g.call(cmd, func(ctx context.Context, c *api.Client) error {
		if err := c.Detach(ctx, id); err != nil {
			return fmt.Errorf("detach %s: %w", id, explain(err))
		}
		if g.output == "json" {
			return console.JSON(cmd.OutOrStdout(), map[string]string{"detached": id})
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "detached %s\n", id)
		return err
	})
}

func attachmentsCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "attachments",
		Short: "List who is attached, and who bypasses and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.call(cmd, func(ctx context.Context, c *api.Client) error {
				all, err := c.Attachments(ctx)
				if err != nil {
					return explain(err)
				}
				if g.output == "json" {
					return console.JSON(cmd.OutOrStdout(), api.AttachmentList{Attachments: append([]spec.Attachment{}, all...)})
				}
				if len(all) == 0 {
					_, err := fmt.Fprintln(cmd.OutOrStdout(), "nobody is attached")
					return err
				}
				return attachmentsTable(all).Print(cmd.OutOrStdout())
			})
		},
	}
}

func attachmentsTable(all []spec.Attachment) *console.Table {
	t := &console.Table{}
	t.Row("ID", "PROJECT", "ENVIRONMENT", "KIND", "RUNTIME", "NETWORK", "INNER", "OF THE PAIR", "SINCE", "BYPASS")
	for _, a := range all {
		network := a.Network
		if a.Passive {
			network += " (passive)"
		}
		t.Row(a.ID, a.Project, a.Environment, a.Kind, a.Runtime, network, addrText(a.Inner), addrText(a.Egress), a.Created.UTC().Format(time.DateTime), a.Bypass)
	}
	return t
}

// explain says what the caller can do about an error of the API.
func explain(err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case api.CodeUnauthorized, api.CodeForbidden:
		return fmt.Errorf("%w; --token-file or SALLYPORT_TOKEN_FILE names the file that is sent", err)
	case api.CodeWrongRegion:
		return fmt.Errorf("%w; --api or SALLYPORT_API says whom to ask", err)
	}
	return err
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func pairText(p [2]netip.Addr) string { return p[0].String() + ", " + p[1].String() }

func joined(list []netip.Addr) string {
	text := make([]string, len(list))
	for i, a := range list {
		text[i] = a.String()
	}
	return strings.Join(text, ", ")
}

// titled is an ID with the name that people know it by.
func titled(id, name string) string {
	if name == "" {
		return id
	}
	return fmt.Sprintf("%s (%s)", id, name)
}
