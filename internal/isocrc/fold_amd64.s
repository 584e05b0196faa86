#include "textflag.h"

// One pair of words, X, is X = lo*X[0] + hi*X[1] + the 16 bytes at OFF(SI). X9 is lo and hi.
#define PAIR(X, T, OFF) \
	MOVOU OFF(SI), X10; \
	MOVO X, T; \
	PCLMULQDQ $0x00, X9, X; \
	PCLMULQDQ $0x11, X9, T; \
	PXOR X10, X; \
	PXOR T, X

// func fold(acc *[8]uint64, p *byte, n int, lo, hi uint64)
TEXT ·fold(SB), NOSPLIT, $0-40
	MOVQ acc+0(FP), DI
	MOVQ p+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ lo+24(FP), X9
	MOVQ hi+32(FP), X10
	PUNPCKLQDQ X10, X9
	MOVOU 0(DI), X0
	MOVOU 16(DI), X1
	MOVOU 32(DI), X2
	MOVOU 48(DI), X3
	JMP more

loop:
	PAIR(X0, X4, 0)
	PAIR(X1, X5, 16)
	PAIR(X2, X6, 32)
	PAIR(X3, X7, 48)
	ADDQ $64, SI
	SUBQ $64, CX

more:
	CMPQ CX, $64
	JGE loop
	MOVOU X0, 0(DI)
	MOVOU X1, 16(DI)
	MOVOU X2, 32(DI)
	MOVOU X3, 48(DI)
	RET
