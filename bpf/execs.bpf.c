// SPDX-License-Identifier: Apache-2.0
/*
 * Tell which programs begin to run, so that who changed the rules has a name
 * although the process has ended by the time that anybody can ask.
 *
 * Nothing is paid but by execve(), which takes a thousand times as long.
 */
#include "kernel.h"
#include "records.h"

BPF_RINGBUF_OUTPUT(execs, NT_RING_PAGES);

/* The value of pointer size at *offset* from *base*. */
#define NT_AT(to, base, offset)                            \
	bpf_probe_read_kernel((void *)(to), sizeof(*(to)), \
			      (const void *)((base) + (offset)))

/* TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm) */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0], parent = 0, memory = 0, from = 0, to = 0;
	struct nt_exec *exec;
	u64 size;

	exec = execs.ringbuf_reserve(sizeof(*exec));
	if (!exec)
		return 0;
	__builtin_memset(exec, 0, sizeof(*exec));
	exec->time_ns = bpf_ktime_get_ns();
	exec->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(exec->process, sizeof(exec->process));
	NT_AT(&parent, task, NT_OFFSET_TASK_STRUCT_REAL_PARENT);
	NT_AT(&exec->parent, parent, NT_OFFSET_TASK_STRUCT_TGID);
	NT_AT(&memory, task, NT_OFFSET_TASK_STRUCT_MM);
	NT_AT(&from, memory, NT_OFFSET_MM_STRUCT_ARG_START);
	NT_AT(&to, memory, NT_OFFSET_MM_STRUCT_ARG_END);
	exec->length = to - from;
	size = to - from;
	/* The verifier follows one register: it must be the one that is compared. */
	asm volatile("" : "+r"(size));
	if (size > NT_EXEC_BYTES)
		size = NT_EXEC_BYTES;
	bpf_probe_read_user(exec->arguments, size, (const void *)from);
	execs.ringbuf_submit(exec, 0);
	return 0;
}
