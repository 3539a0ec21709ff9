echo "$$(pin ~2)" $$(pin)
if true; then echo : $(pinentry); fi
