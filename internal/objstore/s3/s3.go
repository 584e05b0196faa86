// Package s3 is a bucket of an S3-compatible service as an object store.
//
// The service must honour If-None-Match and If-Match of PUT. Check asks it: one that ignores them would
// let two nodes overwrite each other.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	api "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/litefs/litefs/internal/objstore"
)

// TimeKey is the metadata that holds Attrs.Time, as Litestream names it: RFC 3339 with nanoseconds.
const TimeKey = "litestream-timestamp"

// MaxPut is the most that S3 takes in one PUT.
const MaxPut = 5 << 30

// Options say where a bucket is and who asks.
type Options struct {
	Bucket string
	Prefix string // of all keys, without slashes at its ends; may be empty

	Endpoint string // URL of the service; empty: AWS's, by the region
	Region   string // empty: us-east-1

	// AccessKey and SecretKey; both empty: those of the environment (AWS_ACCESS_KEY_ID,
	// AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN).
	AccessKey, SecretKey string

	// VirtualHost asks for BUCKET.endpoint instead of endpoint/BUCKET. It is always so at AWS itself.
	VirtualHost bool

	// PartSize is how large a part of an object is that does not go in one request; a smaller object does.
	// 0: what is larger than MaxPut goes in parts of 512 MiB.
	PartSize int64

	// Client sends the requests. nil: a client of the store's own, with bounds for the parts of a
	// request; the whole is the caller's context's.
	Client *http.Client
}

// Store is one prefix of one bucket.
type Store struct {
	api            *api.Client
	bucket, prefix string // prefix is empty or ends in a slash
	part           int64  // Options.PartSize
}

// attempts is how often a request is tried, with pauses between, before its error is returned. Few:
// who ships to a store tries again by itself, and knows whether it still may.
const attempts = 3

// New returns a store. It asks nothing of the service; see Check.
func New(o Options) (*Store, error) {
	if o.Bucket == "" || strings.ContainsAny(o.Bucket, "/ ") {
		return nil, fmt.Errorf("%q is no name of a bucket", o.Bucket)
	}
	if o.Prefix != "" {
		if err := objstore.CheckKey(o.Prefix); err != nil {
			return nil, fmt.Errorf("prefix in bucket %s: %w", o.Bucket, err)
		}
		o.Prefix += "/"
	}
	if (o.AccessKey == "") != (o.SecretKey == "") {
		return nil, errors.New("an S3 access key and a secret key come together: only one of them is set")
	}
	var token string
	if o.AccessKey == "" {
		o.AccessKey, o.SecretKey, token = os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")
	}
	if o.AccessKey == "" || o.SecretKey == "" {
		return nil, fmt.Errorf("bucket %s: no credentials: give an access key and a secret key, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", o.Bucket)
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	if o.Client == nil {
		o.Client = client()
	}
	options := api.Options{
		Region:           o.Region,
		Credentials:      credentials.NewStaticCredentialsProvider(o.AccessKey, o.SecretKey, token),
		HTTPClient:       o.Client,
		RetryMaxAttempts: attempts,
		UsePathStyle:     o.Endpoint != "" && !o.VirtualHost,
		// By default the SDK adds checksum trailers that many compatible services refuse. The signature
		// covers the content.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	}
	if o.Endpoint != "" {
		u, err := url.Parse(o.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("S3 endpoint %q: want http://HOST or https://HOST", o.Endpoint)
		}
		options.BaseEndpoint = aws.String(o.Endpoint)
	}
	return &Store{api: api.New(options), bucket: o.Bucket, prefix: o.Prefix, part: o.PartSize}, nil
}

// client bounds what a dead service can hold up; http.DefaultClient has no such bounds.
func client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		ExpectContinueTimeout: 2 * time.Second,
	}}
}

func (s *Store) String() string {
	return strings.TrimSuffix("s3://"+s.bucket+"/"+s.prefix, "/")
}

func (s *Store) key(key string) *string { return aws.String(s.prefix + key) }

// PutIfAbsent is objstore.Store's.
func (s *Store) PutIfAbsent(ctx context.Context, key string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	etag, err := s.put(ctx, key, body, a, func(in *api.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
	if status(err) == http.StatusPreconditionFailed || errors.Is(err, objstore.ErrExists) {
		return "", fmt.Errorf("put %s to %s: %w", key, s, objstore.ErrExists)
	}
	return etag, s.wrap("put", key, err)
}

// PutIfMatch is objstore.Store's.
func (s *Store) PutIfMatch(ctx context.Context, key, etag string, body io.ReadSeeker, a objstore.Attrs) (string, error) {
	etag, err := s.put(ctx, key, body, a, func(in *api.PutObjectInput) { in.IfMatch = aws.String(etag) })
	if code := status(err); code == http.StatusPreconditionFailed || code == http.StatusNotFound {
		return "", fmt.Errorf("put %s to %s: %w", key, s, objstore.ErrChanged)
	}
	return etag, s.wrap("put", key, err)
}

func (s *Store) put(ctx context.Context, key string, body io.ReadSeeker, a objstore.Attrs, condition func(*api.PutObjectInput)) (string, error) {
	if err := objstore.CheckKey(key); err != nil {
		return "", err
	}
	size, err := body.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	in := &api.PutObjectInput{
		Bucket: aws.String(s.bucket), Key: s.key(key), ContentLength: aws.Int64(size),
		ContentType: aws.String("application/octet-stream"), Metadata: map[string]string{},
	}
	for name, value := range a.Meta {
		in.Metadata[name] = value
	}
	if !a.Time.IsZero() {
		in.Metadata[TimeKey] = a.Time.UTC().Format(time.RFC3339Nano)
	}
	condition(in)
	if part := s.partSize(size); part > 0 && in.IfNoneMatch != nil {
		return s.putParts(ctx, in, body, size, part)
	}
	return retryConflict(ctx, func() (string, error) {
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return "", err
		}
		in.Body = body
		out, err := s.api.PutObject(ctx, in)
		if err != nil {
			return "", err
		}
		return aws.ToString(out.ETag), nil
	})
}

// retryConflict asks again where the answer is 409: a service may give it to one of two conditional writes at the
// same time.
func retryConflict(ctx context.Context, write func() (etag string, err error)) (string, error) {
	for try := 1; ; try++ {
		etag, err := write()
		if err == nil || status(err) != http.StatusConflict || try == attempts {
			return etag, err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(time.Duration(try) * 100 * time.Millisecond):
		}
	}
}

// Get is objstore.Store's.
func (s *Store) Get(ctx context.Context, key string, r objstore.Range) (*objstore.Object, error) {
	if err := objstore.CheckKey(key); err != nil {
		return nil, err
	}
	in := &api.GetObjectInput{Bucket: aws.String(s.bucket), Key: s.key(key)}
	switch {
	case r.Len > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", r.Off, r.Off+r.Len-1))
	case r.Off > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", r.Off))
	}
	out, err := s.api.GetObject(ctx, in)
	if status(err) == http.StatusNotFound {
		return nil, fmt.Errorf("get %s of %s: %w", key, s, objstore.ErrNotFound)
	}
	if err != nil {
		return nil, s.wrap("get", key, err)
	}
	size := aws.ToInt64(out.ContentLength)
	if _, total, ok := strings.Cut(aws.ToString(out.ContentRange), "/"); ok {
		if _, err := fmt.Sscanf(total, "%d", &size); err != nil {
			return nil, errors.Join(s.wrap("get", key, fmt.Errorf("content range %q", aws.ToString(out.ContentRange))), out.Body.Close())
		}
	}
	return &objstore.Object{
		Info: objstore.Info{Key: key, Size: size, Modified: modified(out)},
		ETag: aws.ToString(out.ETag), Body: out.Body,
	}, nil
}

// modified is the time that was written with the object, or that of its upload.
func modified(out *api.GetObjectOutput) time.Time {
	if at, err := time.Parse(time.RFC3339Nano, out.Metadata[TimeKey]); err == nil {
		return at
	}
	return aws.ToTime(out.LastModified)
}

// List is objstore.Store's.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		in := &api.ListObjectsV2Input{Bucket: aws.String(s.bucket), Prefix: s.key(prefix)}
		if after != "" {
			in.StartAfter = s.key(after)
		}
		for {
			out, err := s.api.ListObjectsV2(ctx, in)
			if err != nil {
				yield(objstore.Info{}, s.wrap("list", prefix, err))
				return
			}
			for _, o := range out.Contents {
				key := strings.TrimPrefix(aws.ToString(o.Key), s.prefix)
				if objstore.CheckKey(key) != nil || key <= after {
					continue // another program's; a marker of a folder
				}
				if !yield(objstore.Info{Key: key, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) {
				return
			}
			in.ContinuationToken = out.NextContinuationToken
		}
	}
}

// Folders is objstore.Store's.
func (s *Store) Folders(ctx context.Context, prefix string) ([]string, error) {
	in := &api.ListObjectsV2Input{Bucket: aws.String(s.bucket), Prefix: s.key(prefix), Delimiter: aws.String("/")}
	var names []string
	for {
		out, err := s.api.ListObjectsV2(ctx, in)
		if err != nil {
			return nil, s.wrap("list the folders of", prefix, err)
		}
		for _, p := range out.CommonPrefixes {
			name := strings.TrimSuffix(strings.TrimPrefix(aws.ToString(p.Prefix), s.prefix+prefix), "/")
			if name != "" {
				names = append(names, name)
			}
		}
		if !aws.ToBool(out.IsTruncated) {
			slices.Sort(names) // some services sort with the slash
			return slices.Compact(names), nil
		}
		in.ContinuationToken = out.NextContinuationToken
	}
}

// Delete is objstore.Store's.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return err
	}
	_, err := s.api.DeleteObject(ctx, &api.DeleteObjectInput{Bucket: aws.String(s.bucket), Key: s.key(key)})
	if status(err) == http.StatusNotFound {
		return nil
	}
	return s.wrap("delete", key, err)
}

// DeleteAll is objstore.Store's.
func (s *Store) DeleteAll(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	all := make([]types.ObjectIdentifier, 0, len(keys))
	for _, key := range keys {
		if err := objstore.CheckKey(key); err != nil {
			return err
		}
		all = append(all, types.ObjectIdentifier{Key: s.key(key)})
	}
	out, err := s.api.DeleteObjects(ctx, &api.DeleteObjectsInput{
		Bucket: aws.String(s.bucket), Delete: &types.Delete{Objects: all, Quiet: aws.Bool(true)},
	})
	if err != nil {
		return s.wrap("delete", fmt.Sprint(len(keys), " objects"), err)
	}
	for _, e := range out.Errors {
		if aws.ToString(e.Code) != "NoSuchKey" {
			return fmt.Errorf("delete %s of %s: %s: %s (%d of %d objects)", aws.ToString(e.Key), s, aws.ToString(e.Code), aws.ToString(e.Message), len(out.Errors), len(keys))
		}
	}
	return nil
}

// Check reports whether the bucket can be written and the service honours both conditions. It writes an
// object under key, which must not be in use, and removes it.
func (s *Store) Check(ctx context.Context, key string) error {
	const first, second = "first", "second"
	_, err := s.PutIfAbsent(ctx, key, strings.NewReader(first), objstore.Attrs{})
	// A put whose answer was lost is tried again, and finds what it has written itself.
	if err != nil && !errors.Is(err, objstore.ErrExists) {
		return err
	}
	defer func() { _ = s.Delete(ctx, key) }() // what is left is five bytes that nobody reads
	got, etag, err := objstore.ReadAll(ctx, s, key, int64(len(first)))
	if err != nil {
		return err
	}
	if string(got) != first {
		return fmt.Errorf("%s: %s is in use", s, key)
	}
	if _, err := s.PutIfAbsent(ctx, key, strings.NewReader(second), objstore.Attrs{}); !errors.Is(err, objstore.ErrExists) {
		return s.dishonours("a second If-None-Match: *", err)
	}
	if _, err := s.PutIfMatch(ctx, key, `"00000000000000000000000000000000"`, strings.NewReader(second), objstore.Attrs{}); !errors.Is(err, objstore.ErrChanged) {
		return s.dishonours("If-Match of another ETag", err)
	}
	_, err = s.PutIfMatch(ctx, key, etag, strings.NewReader(second), objstore.Attrs{})
	if errors.Is(err, objstore.ErrChanged) {
		if got, _, rerr := objstore.ReadAll(ctx, s, key, int64(len(second))); rerr == nil && string(got) == second {
			return nil // as above
		}
		return s.dishonours("If-Match of the right ETag", err)
	}
	return err
}

// dishonours is the error of a service that answers a condition in a wrong way. When it does not answer, that says
// nothing of conditions.
func (s *Store) dishonours(what string, err error) error {
	if err != nil && !errors.Is(err, objstore.ErrExists) && !errors.Is(err, objstore.ErrChanged) {
		return err
	}
	return fmt.Errorf("%s: %w: %s was answered with %v", s, objstore.ErrConditions, what, err)
}

func (s *Store) wrap(what, key string, err error) error {
	if err == nil {
		return nil
	}
	// The SDK's own text repeats operation, host and request in several lines.
	var answer smithy.APIError
	if errors.As(err, &answer) && answer.ErrorMessage() != "" {
		return &Error{What: what, Key: key, Store: s.String(), Code: answer.ErrorCode(), Message: answer.ErrorMessage(), Err: err}
	}
	return fmt.Errorf("%s %s of %s: %w", what, key, s, err)
}

// Error is an answer of the service.
type Error struct {
	What, Key, Store string
	Code, Message    string // of the service
	Err              error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s of %s: %s: %s", e.What, e.Key, e.Store, e.Code, e.Message)
}
func (e *Error) Unwrap() error { return e.Err }

// status is the HTTP status of an answer that was an error; 0 when there was none.
func status(err error) int {
	var answer *smithyhttp.ResponseError
	if errors.As(err, &answer) {
		return answer.HTTPStatusCode()
	}
	return 0
}
