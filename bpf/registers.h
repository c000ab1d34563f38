/* SPDX-License-Identifier: Apache-2.0 */
/* A kprobe's view of a call: arguments, result and stack pointer out of pt_regs. */
#ifndef NT_REGISTERS_H
#define NT_REGISTERS_H

#if defined(__x86_64__)
#define NT_PARM(ctx, n) NT_PARM_##n(ctx)
#define NT_PARM_0(ctx) ((ctx)->di)
#define NT_PARM_1(ctx) ((ctx)->si)
#define NT_PARM_2(ctx) ((ctx)->dx)
#define NT_PARM_3(ctx) ((ctx)->cx)
#define NT_PARM_4(ctx) ((ctx)->r8)
#define NT_RESULT(ctx) ((ctx)->ax)
#define NT_STACK(ctx) ((ctx)->sp)
/* The return address is on the stack at the entry and no more at the return. */
#define NT_RETURN_BYTES 8
#else
#define NT_PARM(ctx, n) ((ctx)->regs[n])
#define NT_RESULT(ctx) ((ctx)->regs[0])
#define NT_STACK(ctx) ((ctx)->sp)
#define NT_RETURN_BYTES 0
#endif

#endif
