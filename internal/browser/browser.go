// Package browser drives a headless Chromium, for tests of the page that a node shows. It speaks the
// DevTools protocol over the pipe of the process: messages of JSON, each ended by a zero byte.
package browser

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// maxMessage bounds one message from the browser, in bytes; a screenshot is one.
const maxMessage = 64 << 20

// Browser is a running Chromium with one page.
type Browser struct {
	cmd     *exec.Cmd
	dir     string // profile
	out     *os.File
	in      *os.File
	reading sync.WaitGroup

	mu      sync.Mutex
	next    int
	waiting map[int]chan message // by id of the request
	ended   error
	session string
}

type message struct {
	ID        int             `json:"id,omitempty"`
	SessionID string          `json:"sessionId,omitempty"`
	Method    string          `json:"method,omitempty"`
	Params    any             `json:"params,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// Start runs the program, like "chromium", with an empty page.
func Start(ctx context.Context, program string) (_ *Browser, err error) {
	b := &Browser{waiting: make(map[int]chan message)}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "litefs-browser-"); err != nil {
		return nil, err
	}
	theirIn, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	in, theirOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, theirIn.Close(), out.Close())
	}
	b.out, b.in = out, in
	b.cmd = exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--hide-scrollbars", "--user-data-dir="+b.dir, "--remote-debugging-pipe", "about:blank")
	b.cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = b.cmd.Start()
	err = errors.Join(err, theirIn.Close(), theirOut.Close())
	if err != nil {
		b.cmd = nil
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	b.reading.Go(b.read)
	return b, b.attach(ctx)
}

// read hands answers to those who wait for them, until the browser has gone.
func (b *Browser) read() {
	sc := bufio.NewScanner(b.in)
	sc.Buffer(nil, maxMessage)
	sc.Split(func(data []byte, _ bool) (int, []byte, error) {
		for i, c := range data {
			if c == 0 {
				return i + 1, data[:i], nil
			}
		}
		return 0, nil, nil
	})
	for sc.Scan() {
		var m message
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil || m.ID == 0 {
			continue // an event
		}
		b.mu.Lock()
		answer := b.waiting[m.ID]
		delete(b.waiting, m.ID)
		b.mu.Unlock()
		if answer != nil {
			answer <- m
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = errors.Join(errors.New("the browser has ended"), sc.Err())
	for _, answer := range b.waiting {
		close(answer)
	}
	b.waiting = nil
}

// call sends a command to the page and decodes its result into result, unless that is nil.
func (b *Browser) call(ctx context.Context, method string, params, result any) error {
	answer := make(chan message, 1)
	b.mu.Lock()
	if b.ended != nil {
		b.mu.Unlock()
		return b.ended
	}
	b.next++
	m := message{ID: b.next, SessionID: b.session, Method: method, Params: params}
	b.waiting[m.ID] = answer
	data, err := json.Marshal(m)
	if err == nil {
		_, err = b.out.Write(append(data, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case got, ok := <-answer:
		switch {
		case !ok:
			return fmt.Errorf("%s: the browser has ended", method)
		case got.Error != nil:
			return fmt.Errorf("%s: %s", method, got.Error.Message)
		case result == nil:
			return nil
		}
		return json.Unmarshal(got.Result, result)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, context.Cause(ctx))
	}
}

type object = map[string]any

func (b *Browser) attach(ctx context.Context) error {
	var made struct{ TargetID, SessionID string }
	if err := b.call(ctx, "Target.createTarget", object{"url": "about:blank"}, &made); err != nil {
		return err
	}
	if err := b.call(ctx, "Target.attachToTarget", object{"targetId": made.TargetID, "flatten": true}, &made); err != nil {
		return err
	}
	b.mu.Lock()
	b.session = made.SessionID
	b.mu.Unlock()
	return b.call(ctx, "Page.enable", object{}, nil)
}

// Show sets the size of the window in pixels, and whether the user likes it dark.
func (b *Browser) Show(ctx context.Context, width, height int, dark bool) error {
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	return errors.Join(
		b.call(ctx, "Emulation.setDeviceMetricsOverride", object{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}, nil),
		b.call(ctx, "Emulation.setEmulatedMedia", object{"features": []object{{"name": "prefers-color-scheme", "value": scheme}}}, nil))
}

// Open goes to url. It does not wait for what the page's script does then.
func (b *Browser) Open(ctx context.Context, url string) error {
	var r struct{ ErrorText string }
	if err := b.call(ctx, "Page.navigate", object{"url": url}, &r); err != nil {
		return err
	}
	if r.ErrorText != "" {
		return fmt.Errorf("open %s: %s", url, r.ErrorText)
	}
	return nil
}

// Eval runs an expression in the page, waits if it is a promise, and decodes its value into value.
func (b *Browser) Eval(ctx context.Context, expression string, value any) error {
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	err := b.call(ctx, "Runtime.evaluate", object{"expression": expression, "awaitPromise": true, "returnByValue": true}, &r)
	if err != nil {
		return err
	}
	if e := r.ExceptionDetails; e != nil {
		return fmt.Errorf("%s: %s %s", expression, e.Text, e.Exception.Description)
	}
	if value == nil || r.Result.Value == nil {
		return nil
	}
	return json.Unmarshal(r.Result.Value, value)
}

// Key presses and releases a key, like "Tab" or "Enter".
func (b *Browser) Key(ctx context.Context, key string) error {
	code := map[string]int{"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}[key]
	down := object{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code}
	if key == "Enter" {
		down["text"] = "\r"
	}
	up := object{"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code}
	return errors.Join(b.call(ctx, "Input.dispatchKeyEvent", down, nil), b.call(ctx, "Input.dispatchKeyEvent", up, nil))
}

// Type types text where the focus is.
func (b *Browser) Type(ctx context.Context, text string) error {
	return b.call(ctx, "Input.insertText", object{"text": text}, nil)
}

// Screenshot returns the window as PNG.
func (b *Browser) Screenshot(ctx context.Context) ([]byte, error) {
	var r struct{ Data string }
	if err := b.call(ctx, "Page.captureScreenshot", object{"format": "png"}, &r); err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(r.Data)
}

// Close ends the browser with all its processes and removes its profile.
func (b *Browser) Close() error {
	var errs []error
	if b.cmd != nil {
		if err := syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
		var exit *exec.ExitError
		if err := b.cmd.Wait(); err != nil && !errors.As(err, &exit) {
			errs = append(errs, err)
		}
	}
	for _, f := range []*os.File{b.out, b.in} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	b.reading.Wait()
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	return errors.Join(errs...)
}
