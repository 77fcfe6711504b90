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
)

func attachCommand(g *globals) *cobra.Command {
	req := api.AttachRequest{}
	var kind, format string
	cmd := &cobra.Command{
		Use:   "attach --project ID --environment NAME --region NAME [--kind KIND] [--runtime RUNTIME] [--public-key KEY] [--format FORMAT]",
		Short: "Attach a sandbox and say where its tunnel goes",
		Long: `Attach a sandbox and say where its tunnel goes.

Workers do this through their sidecar. By hand it is for stock WireGuard clients
and for looking around: the command returns when the gateway expects the key.

Without --public-key a key pair is made. Its private key is printed now and never
again; nothing keeps it.

With --format wg-quick the text is a configuration for a stock WireGuard client,
which is the sandbox then; it holds the private key.`,
		Example: `  sallyport attach --project prj_shop --environment production --region iad1
  (umask 077; sallyport attach --project prj_shop --environment production --region iad1 --format wg-quick > /etc/wireguard/shop.conf)`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.checkFormat(format); err != nil {
				return err
			}
			req.Kind = spec.Kind(kind)
			return g.call(cmd, func(ctx context.Context, c *api.Client) error {
				return attach(ctx, c, req, printer{w: cmd.OutOrStdout(), json: g.output == "json", wgQuick: format == formatWGQuick})
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
	f.StringVar(&format, "format", formatTable, "`FORMAT` of what is printed: table, or wg-quick for a stock client's configuration")
	for _, name := range []string{"project", "environment", "region"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flags are defined above
		}
	}
	return cmd
}

// printer prints an answer in the format that was asked for.
type printer struct {
	w             io.Writer
	json, wgQuick bool
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
		return attachWGQuick(ctx, c, resp, private, p.w)
	}
	if p.json {
		return printJSON(p.w, attached{AttachResponse: resp, PrivateKey: private})
	}
	return attachTable(resp, private).print(p.w)
}

// attachWGQuick prints a stock client's configuration. Where there can be none, the
// attachment is of no use, and is ended.
func attachWGQuick(ctx context.Context, c *api.Client, resp api.AttachResponse, private string, w io.Writer) error {
	text, err := sandboxConfig(resp, private)
	if err == nil {
		err = text.print(w)
	}
	if err == nil {
		return nil
	}
	if detach := c.Detach(ctx, resp.Attachment.ID); detach != nil {
		return fmt.Errorf("%w; and %s is still attached: %w", err, resp.Attachment.ID, detach)
	}
	return err
}

func attachTable(resp api.AttachResponse, private string) *table {
	a, n := resp.Attachment, resp.Network
	t := &table{}
	t.row("ID", a.ID)
	if a.Bypass != "" {
		t.row("BYPASS", a.Bypass)
		return t
	}
	t.row("NETWORK", titled(n.ID, n.Name))
	t.row("REGION", n.Region)
	t.row("INNER ADDRESS", a.Inner)
	t.row("WORKER ADDRESS", a.Worker)
	t.row("LEAVES FROM", a.Egress)
	t.row("PAIR", pairText(n.Pair))
	t.row("DNS", joined(n.DNS))
	t.row("MTU", n.MTU)
	for _, gw := range resp.Gateways {
		name := strings.ToUpper(string(gw.Role)) + " GATEWAY"
		t.row(name, gw.Host)
		t.row(name+" ENDPOINT", gw.Endpoint)
		t.row(name+" PUBLIC KEY", gw.PublicKey)
	}
	if resp.Passive != nil {
		t.row("PASSIVE REGION", resp.Passive.Region)
	}
	t.row("PUBLIC KEY", a.PublicKey)
	if private != "" {
		t.row("PRIVATE KEY (shown once)", private)
	}
	return t
}

func detachCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "detach ID",
		Short:   "End an attachment: the sandbox's traffic stops",
		Example: "  sallyport detach att-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !spec.ValidID(args[0]) {
				return fmt.Errorf("%q is not the ID of an attachment; `sallyport attachments` lists them", args[0])
			}
			return g.call(cmd, func(ctx context.Context, c *api.Client) error {
				if err := c.Detach(ctx, args[0]); err != nil {
					return explain(err)
				}
				if g.output == "json" {
					return printJSON(cmd.OutOrStdout(), map[string]string{"detached": args[0]})
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "detached %s\n", args[0])
				return err
			})
		},
	}
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
					return printJSON(cmd.OutOrStdout(), api.AttachmentList{Attachments: append([]spec.Attachment{}, all...)})
				}
				if len(all) == 0 {
					_, err := fmt.Fprintln(cmd.OutOrStdout(), "nobody is attached")
					return err
				}
				return attachmentsTable(all).print(cmd.OutOrStdout())
			})
		},
	}
}

func attachmentsTable(all []spec.Attachment) *table {
	t := &table{}
	t.row("ID", "PROJECT", "ENVIRONMENT", "KIND", "RUNTIME", "NETWORK", "INNER", "LEAVES FROM", "SINCE", "BYPASS")
	for _, a := range all {
		network := a.Network
		if a.Passive {
			network += " (passive)"
		}
		t.row(a.ID, a.Project, a.Environment, a.Kind, a.Runtime, network, addrText(a.Inner), addrText(a.Egress), a.Created.UTC().Format(time.DateTime), a.Bypass)
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
