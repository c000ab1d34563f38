// SPDX-License-Identifier: Apache-2.0
/*
 * Compiled behind drops.bpf.c: what finding the saved registers needs, at start only,
 * and reading kernel memory for user space.
 */
BPF_ARRAY(sampled_mark, u32, 1);
BPF_RINGBUF_OUTPUT(stacks, NT_STACK_PAGES);
BPF_ARRAY(peeked, struct nt_peek, 1);

/*
 * Of packets with the wanted mark, copy the words above the frame pointer, and what each points at. It stands where
 * on_kfree_skb_locate() stands and, like it, keeps its stack below 64 bytes.
 */
int on_kfree_skb_sample(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	struct nt_stack *stack;
	struct nt_scratch *t;
	u32 *wanted;
	int zero = 0;

	wanted = sampled_mark.lookup(&zero);
	t = scratches.lookup(&zero);
	if (!wanted || !t)
		return 0;
	t->length = 0;
	nt_read(&t->length, &skb->mark);
	if (t->length != *wanted)
		return 0;
	stack = stacks.ringbuf_reserve(sizeof(*stack));
	if (!stack)
		return 0;
	asm volatile("%0 = r10" : "=r"(stack->frame));
	stack->location = ctx->args[1];
	nt_read(&t->name, &skb->head);
	t->word = 0;
	bpf_probe_read_kernel(&t->word, 2, &skb->network_header);
	t->name += t->word;
	nt_read(&t->key.family, t->name);
	/* An IPv4 header without options, or IPv6's: the port's place is fixed. */
	nt_read(&stack->dport, t->name + ((t->key.family >> 4) == 4 ? 22 : 42));
	for (int i = 0; i < NT_WORDS; i++) {
		nt_read(&stack->word[i], stack->frame + 8 * i);
		nt_read(&stack->target[i], stack->word[i]);
	}
	stacks.ringbuf_submit(stack, BPF_RB_NO_WAKEUP);
	return 0;
}

/* Run by user space: read *length* bytes at *address*; who asks, and from which net. */
int on_peek(void *ctx)
{
	struct nt_peek *peek;
	int zero = 0;
	u32 length;

	peek = peeked.lookup(&zero);
	if (!peek)
		return 0;
	length = peek->length;
	if (length > NT_PEEK_BYTES)
		length = NT_PEEK_BYTES;
	if (length)
		peek->error = bpf_probe_read_kernel(peek->bytes, length,
						    (void *)peek->address);
	peek->task = bpf_get_current_task();
	*(struct nt_scratch *volatile *)&peek->self = scratches.lookup(&zero);
	return 0;
}
