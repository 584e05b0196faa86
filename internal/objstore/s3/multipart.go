package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	api "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/litefs/litefs/internal/objstore"
)

// An object that is too large for one PUT goes up in parts, one after the other. Nothing of it can be seen
// before the last request, which puts them together and has the condition. What a crash leaves of an upload is
// no object, and is paid for until it is aborted: a rule of the bucket does that (docs/archive.md).

const (
	defaultPart = 512 << 20
	maxParts    = 10_000

	// abortPatience bounds the abort of an upload that has failed: it goes on when the caller has given up.
	abortPatience = 10 * time.Second
)

// partSize is how large the parts of an object are; 0: it goes in one PUT.
func (s *Store) partSize(size int64) int64 {
	switch {
	case s.part > 0 && size > s.part:
		return max(s.part, (size+maxParts-1)/maxParts)
	case s.part == 0 && size > MaxPut:
		return max(defaultPart, (size+maxParts-1)/maxParts)
	}
	return 0
}

// putParts writes an object in parts of the given size, if there is none under the key. What PutIfMatch writes is
// small and never comes here.
func (s *Store) putParts(ctx context.Context, in *api.PutObjectInput, body io.ReadSeeker, size, part int64) (etag string, err error) {
	// The condition comes last: this spares the upload where it is known to be in vain.
	_, err = s.api.HeadObject(ctx, &api.HeadObjectInput{Bucket: in.Bucket, Key: in.Key})
	if err == nil {
		return "", fmt.Errorf("%w already", objstore.ErrExists)
	}
	if status(err) != http.StatusNotFound {
		return "", err
	}
	begun, err := s.api.CreateMultipartUpload(ctx, &api.CreateMultipartUploadInput{
		Bucket: in.Bucket, Key: in.Key, ContentType: in.ContentType, Metadata: in.Metadata,
	})
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			s.abortParts(ctx, in, begun.UploadId)
		}
	}()
	var done []types.CompletedPart
	for at := int64(0); at < size; at += part {
		number := aws.Int32(int32(len(done) + 1))
		n := min(part, size-at)
		out, err := s.api.UploadPart(ctx, &api.UploadPartInput{
			Bucket: in.Bucket, Key: in.Key, UploadId: begun.UploadId, PartNumber: number,
			ContentLength: aws.Int64(n), Body: &section{body: body, start: at, size: n},
		})
		if err != nil {
			return "", fmt.Errorf("part %d of %d bytes: %w", *number, n, err)
		}
		done = append(done, types.CompletedPart{ETag: out.ETag, PartNumber: number})
	}
	return retryConflict(ctx, func() (string, error) {
		out, err := s.api.CompleteMultipartUpload(ctx, &api.CompleteMultipartUploadInput{
			Bucket: in.Bucket, Key: in.Key, UploadId: begun.UploadId, IfNoneMatch: in.IfNoneMatch,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
		})
		if err != nil {
			return "", err
		}
		return aws.ToString(out.ETag), nil
	})
}

// abortParts throws an upload away. Failing is no harm but the cost.
func (s *Store) abortParts(ctx context.Context, in *api.PutObjectInput, id *string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortPatience)
	defer cancel()
	_, _ = s.api.AbortMultipartUpload(ctx, &api.AbortMultipartUploadInput{Bucket: in.Bucket, Key: in.Key, UploadId: id})
}

// section is a part of a content. Of several that share one, one is read at a time.
type section struct {
	body        io.ReadSeeker
	start, size int64
	at          int64 // in the section
	placed      bool  // body stands at start + at
}

func (s *section) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.at
	case io.SeekEnd:
		offset += s.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of a part")
	}
	s.at, s.placed = offset, false
	return offset, nil
}

func (s *section) Read(b []byte) (int, error) {
	if s.at >= s.size {
		return 0, io.EOF
	}
	if !s.placed {
		if _, err := s.body.Seek(s.start+s.at, io.SeekStart); err != nil {
			return 0, err
		}
		s.placed = true
	}
	n, err := s.body.Read(b[:min(int64(len(b)), s.size-s.at)])
	s.at += int64(n)
	if errors.Is(err, io.EOF) && s.at < s.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
