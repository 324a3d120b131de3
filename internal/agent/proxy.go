package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// maxProxyAnswer bounds the head of a proxy's answer in bytes.
const maxProxyAnswer = 16 << 10

// ProxyFromEnvironment finds the HTTP proxy for a gateway as other programs do:
// HTTPS_PROXY, else ALL_PROXY (or in lower case), unless NO_PROXY names the
// gateway. It returns nil where neither is set. getenv is os.Getenv.
func ProxyFromEnvironment(getenv func(string) string) func(hostport string) (*url.URL, error) {
	first := func(names ...string) string {
		for _, n := range names {
			if v := getenv(n); v != "" {
				return v
			}
		}
		return ""
	}
	proxy := first("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
	if proxy == "" {
		return nil
	}
	// httpproxy takes what it cannot parse for no proxy at all. Its error, and
	// ours, would repeat the password.
	full := proxy
	if !strings.Contains(full, "://") {
		full = "http://" + full
	}
	if u, err := url.Parse(full); err != nil || u.Hostname() == "" {
		return func(string) (*url.URL, error) {
			return nil, errors.New("the proxy of the environment (HTTPS_PROXY or ALL_PROXY) is not a URL")
		}
	}
	find := (&httpproxy.Config{HTTPSProxy: full, NoProxy: first("NO_PROXY", "no_proxy")}).ProxyFunc()
	return func(hostport string) (*url.URL, error) {
		return find(&url.URL{Scheme: "https", Host: hostport})
	}
}

// dialThrough connects to target, through the proxy if there is one.
func dialThrough(ctx context.Context, dial func(ctx context.Context, network, addr string) (net.Conn, error), proxy *url.URL, target string) (net.Conn, error) {
	if proxy == nil {
		return dial(ctx, "tcp", target)
	}
	port := proxy.Port()
	switch proxy.Scheme {
	case "http":
		port = cmp.Or(port, "80")
	case "https":
		port = cmp.Or(port, "443")
	default:
		return nil, fmt.Errorf("proxy %s: scheme %q is not supported; use http or https", proxy.Host, proxy.Scheme)
	}
	at := net.JoinHostPort(proxy.Hostname(), port)
	c, err := dial(ctx, "tcp", at)
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", at, err)
	}
	if proxy.Scheme == "https" {
		c = tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: proxy.Hostname()})
	}
	// Whoever does not answer is cut off with ctx.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err = connectThrough(c, proxy, target)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = c.Close() // the first error is the one that counts
		return nil, fmt.Errorf("proxy %s: %w", at, errors.Join(err, ctx.Err()))
	}
	return c, nil
}

// connectThrough asks the proxy for a tunnel (RFC 9110 section 9.3.6).
func connectThrough(c io.ReadWriter, proxy *url.URL, target string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", target, target)
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	b.WriteString("\r\n")
	if _, err := c.Write(b.Bytes()); err != nil {
		return fmt.Errorf("send CONNECT: %w", err)
	}
	return readProxyAnswer(c)
}

// readProxyAnswer reads the head of the answer and not one byte more.
func readProxyAnswer(r io.Reader) error {
	var head []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) == maxProxyAnswer {
			return fmt.Errorf("answer to CONNECT is longer than %d bytes", maxProxyAnswer)
		}
		if _, err := io.ReadFull(r, one); err != nil {
			return fmt.Errorf("answer to CONNECT: %w", err)
		}
		head = append(head, one[0])
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return errors.New("answer to CONNECT is not HTTP")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode == http.StatusProxyAuthRequired {
			return errors.New("it wants a user and password; put them into the proxy's URL")
		}
		return fmt.Errorf("it refuses the gateway's address: status %d", resp.StatusCode)
	}
	return nil
}
